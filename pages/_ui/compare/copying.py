"""A button that puts a reply into the clipboard; Streamlit has none for text that is no code."""

from __future__ import annotations

import streamlit as st

from pages._ui.shell.language import t

_HTML = """
<button type="button">
  <svg aria-hidden="true" viewBox="0 0 24 24"><path d="M8 8V4h12v12h-4 M4 8h12v12H4z"/></svg>
  <span id="said" role="status"></span>
</button>
"""
_CSS = """
button { all: unset; cursor: pointer; font: inherit; font-size: .875rem; line-height: 1.5rem;
  padding: .125rem .375rem; border-radius: .5rem; color: var(--st-text-color); white-space: nowrap }
svg { width: 1rem; height: 1rem; vertical-align: -.15rem; fill: none;
  stroke: currentColor; stroke-width: 2 }
button:hover { color: var(--st-primary-color) }
button:focus-visible { outline: 2px solid var(--st-primary-color) }
"""
_JS = """
export default function ({ data, parentElement }) {
  const button = parentElement.querySelector("button");
  const said = parentElement.querySelector("#said");
  button.title = data.copy;
  button.setAttribute("aria-label", data.copy);
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(data.text);
    } catch {  // without https only the old way is open
      const area = document.createElement("textarea");
      area.value = data.text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    said.textContent = data.copied;
    setTimeout(() => { said.textContent = ""; }, 1500);
  };
}
"""
_button = st.components.v2.component("copy_reply", html=_HTML, css=_CSS, js=_JS)


def button(text: str, key: str) -> None:
    """Copy ``text``. It goes to the browser as data and is never part of the page."""
    words = {"copy": t("Copy"), "copied": t("Copied")}
    _button(data={"text": text, **words}, key=key, width="content", height="content")
