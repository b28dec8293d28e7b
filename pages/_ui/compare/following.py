"""The page stays at the end of a reply that streams, until one scrolls up.

Streamlit follows by itself, but lets go for good when a reply grows while the browser is busy: in
about half of the tries of ``test_the_page_follows_the_stream_until_one_scrolls_up`` on two cores.
"""

from __future__ import annotations

import streamlit as st

_JS = """
export default function ({ parentElement }) {
  const box = document.querySelector('[data-testid="stAppScrollToBottomContainer"]');
  const content = box?.querySelector('[data-testid="stMainBlockContainer"]');
  if (!content) return;
  parentElement.stop?.();
  let held = true, top = box.scrollTop, height = box.scrollHeight;
  const moved = () => {
    if (box.scrollHeight - box.clientHeight - box.scrollTop < 8) held = true;
    // Up though nothing became shorter: somebody wants to read.
    else if (box.scrollTop < top - 1 && box.scrollHeight >= height) held = false;
    top = box.scrollTop;
    height = box.scrollHeight;
  };
  const watch = new ResizeObserver(() => { if (held) box.scrollTop = box.scrollHeight; });
  box.addEventListener("scroll", moved, { passive: true });
  watch.observe(content);
  parentElement.stop = () => { watch.disconnect(); box.removeEventListener("scroll", moved); };
  return parentElement.stop;
}
"""
_follow = st.components.v2.component("follow_stream", js=_JS)


def follow() -> None:
    """Draw it beside the live replies; it ends with them."""
    _follow(key="follow_stream", width="content", height="content")
