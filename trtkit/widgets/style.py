"""The look of every widget: one ink colour taken from the page, everything else mixed from it."""

from __future__ import annotations

import ipywidgets

__all__ = ["STYLE", "sheet"]

# The ink is what the front end itself writes with: VS Code's, Colab's or JupyterLab's and Notebook's. All greys are
# mixed from it, so that light and dark pages need no second sheet. The accents are Okabe and Ito's, as in the figures.
STYLE = """
.trtkit {
  --trtkit-ink: var(--vscode-foreground, var(--colab-primary-text-color, var(--jp-content-font-color1, CanvasText)));
  --trtkit-page: var(--vscode-editor-background, var(--colab-primary-surface-color, var(--jp-layout-color0, Canvas)));
  --trtkit-soft: color-mix(in srgb, var(--trtkit-ink) 72%, transparent);
  --trtkit-line: color-mix(in srgb, var(--trtkit-ink) 20%, transparent);
  --trtkit-card: color-mix(in srgb, var(--trtkit-ink) 5%, transparent);
  --trtkit-blue: #2b8cc4; --trtkit-vermilion: #d55e00; --trtkit-orange: #e69f00; --trtkit-green: #009e73;
  color: var(--trtkit-ink); font: 14px/1.5 system-ui, sans-serif; max-width: 64rem;
}
.trtkit .widget-html-content, .trtkit .widget-html { color: var(--trtkit-ink); }
.trtkit .widget-html-content { line-height: 1.5; }
.trtkit .widget-label { color: var(--trtkit-ink); }
.trtkit p { margin: .25rem 0; }
.trtkit h3 { font-size: 1.15rem; line-height: 1.3; margin: .2rem 0 .3rem; }
.trtkit summary { cursor: pointer; color: var(--trtkit-soft); font-size: 13px; }
.trtkit h4 { font-size: 1rem; margin: .8rem 0 .2rem; }
.trtkit .trtkit-soft { color: var(--trtkit-soft); }
.trtkit code, .trtkit pre { font-family: var(--jp-code-font-family, ui-monospace, monospace); font-size: 12.5px; }
.trtkit button:focus-visible, .trtkit input:focus-visible, .trtkit select:focus-visible, .trtkit summary:focus-visible {
  outline: 2px solid var(--trtkit-blue); outline-offset: 2px; }
.trtkit-table { overflow-x: auto; margin: .4rem 0; }
.trtkit-table table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; margin: 0; }
.trtkit-table caption { caption-side: top; text-align: left; color: var(--trtkit-soft); padding: .2rem 0; }
.trtkit .trtkit-table table th, .trtkit .trtkit-table table td { text-align: left; vertical-align: top;
  padding: .25rem .8rem .25rem 0;
  border-bottom: 1px solid var(--trtkit-line); background: none; color: var(--trtkit-ink); white-space: normal; }
.trtkit .trtkit-table table th { font-weight: 600; }
.trtkit .trtkit-table table tr { background: none; }
.trtkit .trtkit-facts table th { color: var(--trtkit-soft); font-weight: 400; white-space: nowrap; }
.trtkit .trtkit-table table .trtkit-number { text-align: right; padding-right: 1rem; }
.trtkit .trtkit-table table .trtkit-marked td { font-weight: 600;
  background: color-mix(in srgb, var(--trtkit-orange) 16%, transparent); }
.trtkit-scroll { max-height: 19rem; overflow: auto; }
.trtkit .trtkit-scroll table thead th { position: sticky; top: 0; background: var(--trtkit-page); }
.trtkit-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: .9rem; }
.trtkit-cards figure { margin: 0; background: var(--trtkit-card); border-radius: 6px; padding: .5rem; }
.trtkit-cards img { width: 100%; display: block; border-radius: 3px; }
.trtkit-cards figcaption { padding: .35rem .1rem 0; font-size: 13px; }
.trtkit .trtkit-code { background: var(--trtkit-card); border-radius: 4px; padding: .5rem .7rem; margin: .3rem 0;
  overflow: auto; user-select: text; white-space: pre; }
.trtkit .trtkit-reason { color: var(--trtkit-soft); font-style: italic; }
.trtkit-steps { border-bottom: 1px solid var(--trtkit-line); padding-bottom: .4rem; gap: .15rem; }
.trtkit-steps .trtkit-here { font-weight: 600; }
.trtkit-page { padding: .3rem 0 .6rem; }
.trtkit .trtkit-fold { text-align: left; padding: 0 .7rem; font-weight: 600; }
.trtkit .trtkit-fold i { width: 1rem; }
.trtkit-folded { border-left: 2px solid var(--trtkit-line); margin: .2rem 0 .2rem .35rem;
  padding: .2rem .2rem .2rem .8rem; }
.trtkit .trtkit-command .trtkit-code { white-space: pre-wrap; overflow-wrap: anywhere; }
.trtkit-choices { gap: .25rem; }
.trtkit-choices .trtkit-choice { text-align: left; padding-left: .7rem; }
.trtkit-choices .trtkit-choice i { width: 1.2rem; }
.trtkit-choices > div { gap: .7rem; }
.trtkit-fault, .trtkit-note { display: flex; gap: .6rem; border: 1px solid var(--trtkit-line); border-left-width: 4px;
  border-radius: 4px; padding: .4rem .7rem; margin: .4rem 0; background: var(--trtkit-card); }
.trtkit-fault { border-left-color: var(--trtkit-vermilion); }
.trtkit-note { border-left-color: var(--trtkit-blue); }
.trtkit-note.warning { border-left-color: var(--trtkit-orange); }
.trtkit-note.problem { border-left-color: var(--trtkit-vermilion); }
.trtkit-note.good { border-left-color: var(--trtkit-green); }
.trtkit-fault pre { overflow: auto; max-height: 20rem; white-space: pre; background: none; color: var(--trtkit-ink); }
.trtkit-fault > div, .trtkit-note > div { min-width: 0; flex: 1; }
.trtkit-sign { font-weight: 700; width: 1.1rem; text-align: center; flex: none; }
.trtkit .trtkit-log { max-height: 11rem; overflow: auto; margin: .3rem 0; padding: .4rem .6rem;
  background: var(--trtkit-card); border-radius: 4px; white-space: pre-wrap; }
"""


def sheet() -> ipywidgets.HTML:
    """The style, to be put first into a widget whose box has the class `trtkit`."""
    return ipywidgets.HTML(f"<style>{STYLE}</style>", layout=ipywidgets.Layout(display="none"))
