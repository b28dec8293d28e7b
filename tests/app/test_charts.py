"""Charts of the Train page: what they say with little to show, and in a narrow window."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest


def _page() -> None:
    from core.training.figures import Figures
    from pages._ui.train.charts import figure_charts

    figure_charts({"a run": [Figures(step=0, kl=0.1)]})


def test_one_point_has_a_whole_step_and_a_title_that_wraps() -> None:
    app = AppTest.from_function(_page, default_timeout=60).run()
    assert not app.exception
    assert [c.value for c in app.caption] == ["Difference from the base (nats a token)"]
    (chart,) = app.get("vega_lite_chart") or app.get("arrow_vega_lite_chart")
    assert '"format": "d"' in chart.proto.spec
    assert '"title": {' not in chart.proto.spec, "vega cuts a title at the width of its chart"
