"""What this is, in a minute."""

from __future__ import annotations

import streamlit as st

from pages._ui.shell import current
from pages._ui.shell.language import N_, t

#: Step, what happens, how one knows that it went well.
_STEPS = (
    (
        ":material/edit_note:",
        N_("1 Dataset"),
        N_("Questions and answers about the persona, mixed with the model's own replies so that "
           "it stays itself otherwise."),
    ),
    (
        ":material/model_training:",
        N_("2 Train"),
        N_("QLoRA with XTuner: a small adapter learns who it is. You watch the loss and the "
           "replies change."),
    ),
    (
        ":material/merge:",
        N_("3 Merge"),
        N_("The adapter goes into the weights, and a proof compares the result with base + "
           "adapter."),
    ),
    (
        ":material/compare:",
        N_("4 Compare"),
        N_("Talk to the model before and after. A scorecard says what was learned and whether "
           "anything broke."),
    ),
)  # fmt: skip


def title() -> None:
    """The name, and the product in one sentence."""
    st.title("Persona Workbench")
    st.write(
        t("Give a chat model a name, a maker and a manner, and see with numbers that it took "
          "them on and lost nothing else.")
    )  # fmt: skip


def draw() -> None:
    """The four steps: open at a first visit, folded away once there is a persona."""
    with st.expander(
        t("The four steps, in a minute"), expanded=not current.seen().projects,
        icon=":material/route:",
    ):  # fmt: skip
        for icon, name, about in _STEPS:
            st.markdown(f"{icon} **{t(name)}**  \n{t(about)}")
        st.caption(
            t("All of it runs on this machine. Each step has a page of its own with every setting; "
              "one button does all four.")
        )  # fmt: skip
