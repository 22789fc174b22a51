"""The layout of the login form: widgets, style, and names of regions."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as w

from kmsdata.notebook.password_field import WipingPassword

__all__ = ["DOT", "OTHER", "REGIONS", "FormLayout", "key_choices", "show", "status_html"]

REGIONS = {
    "ap-guangzhou": "Guangzhou 广州",
    "ap-shanghai": "Shanghai 上海",
    "ap-beijing": "Beijing 北京",
    "ap-nanjing": "Nanjing 南京",
    "ap-chengdu": "Chengdu 成都",
    "ap-chongqing": "Chongqing 重庆",
    "ap-hongkong": "Hong Kong 中国香港",
    "ap-singapore": "Singapore 新加坡",
    "ap-bangkok": "Bangkok 曼谷",
    "ap-jakarta": "Jakarta 雅加达",
    "ap-mumbai": "Mumbai 孟买",
    "ap-seoul": "Seoul 首尔",
    "ap-tokyo": "Tokyo 东京",
    "eu-frankfurt": "Frankfurt 法兰克福",
    "na-ashburn": "Virginia 弗吉尼亚",
    "na-siliconvalley": "Silicon Valley 硅谷",
    "sa-saopaulo": "São Paulo 圣保罗",
}
"""Regions that have KMS, with their names in English and Chinese."""

OTHER = "*"  # the choice that shows a text field for another value
DOT = "  ·  "  # between a key's alias and its state
_LABELS = "110px"
_MARKS = {
    "ask": ("ⓘ", "var(--jp-info-color1, #0277bd)"),
    "busy": ("⋯", "var(--jp-info-color1, #0277bd)"),
    "good": ("✓", "var(--jp-success-color1, #2e7d32)"),
    "bad": ("✗", "var(--jp-error-color1, #c62828)"),
}
# The --jp variables are those of JupyterLab's themes; the colours after them are for other front ends.
_HEAD = """<style>
.kmsdata-login { border: 1px solid var(--jp-border-color1, #bdbdbd); border-radius: 6px;
  padding: 12px 16px 14px; max-width: 640px; color: var(--jp-content-font-color1, inherit); }
.kmsdata-login .kmsdata-status { border-left: 3px solid; padding: 2px 0 2px 10px; margin: 6px 2px;
  line-height: 1.45; color: var(--jp-content-font-color1, inherit); overflow-wrap: anywhere; }
.kmsdata-login .kmsdata-head { line-height: 1.45; margin-bottom: 4px;
  color: var(--jp-content-font-color1, inherit); }
.kmsdata-login .jupyter-widget-Collapse { margin-left: 110px; }
.kmsdata-login .jupyter-widget-Collapse-header, .kmsdata-login .jupyter-widget-Collapse-contents {
  background: none; border: none; padding: 2px 4px; font-weight: normal; }
.kmsdata-login .kmsdata-file { display: inline-block; line-height: 1.45; overflow-wrap: anywhere;
  color: var(--jp-content-font-color1, inherit); background: none; }
.kmsdata-login .kmsdata-head small { color: var(--jp-content-font-color2, inherit); }
</style>
<div class="kmsdata-head"><b>Sign in to a key service</b><br>
<small>What you type stays in this kernel's memory; the notebook and its outputs never keep it.</small>
</div>"""


class FormLayout(w.VBox):
    """The widgets of the form and their layout; `LoginForm` defines what they do."""

    def __init__(self) -> None:
        self.service = w.ToggleButtons(
            options=[("Tencent Cloud KMS", "tencent"), ("Local keystore", "local")],
            style={"button_width": "auto"},
            layout=w.Layout(margin="2px 0 2px 4px"),
        )
        self.secret_id = WipingPassword(named=True, **_field("SecretId", "AKID…"))
        self.secret_key = WipingPassword(**_field("SecretKey", ""))
        self.token = WipingPassword(**_field("Session token", "only for temporary credentials"))
        self.region = w.Dropdown(
            options=[("choose a region", ""), *_regions(), ("another: its code …", OTHER)],
            **_field("Region"),
        )
        self.other_region = w.Text(**_field("Region's code", "such as ap-guangzhou"))
        self.endpoint = w.Text(placeholder="kms.tencentcloudapi.com", layout=_wide())
        self.more = w.Accordion([self.endpoint], titles=["Endpoint"], selected_index=None, layout=_wide())
        self.passphrase = WipingPassword(exact=True, **_field("Passphrase", "empty if the file has none"))
        self.repeated = WipingPassword(exact=True, **_field("Once more", "the same passphrase"))
        self.file = w.HTML(**_field("File"))
        self.connect = w.Button(description="Connect", button_style="primary", layout=_button())
        self.status = w.HTML(layout=_wide())
        self.keys_there = w.Select(**_field("Key"))
        self.other_key = w.Text(**_field("Key's name"))
        self.choose = w.Button(description="Make this my key", button_style="primary", layout=_button())
        self.go_on = w.Button(description="Continue without", layout=_button())
        self.again = w.Button(description="Sign in again", layout=_button())

        self._cloud = w.VBox(
            [self.secret_id, self.secret_key, self.token, self.region, self.other_region, self.more]
        )
        self._local = w.VBox([self.file, self.passphrase, self.repeated])
        label = w.Label(
            "Keys are in", layout=w.Layout(width=_LABELS, display="flex", justify_content="flex-end")
        )
        self._asking = w.VBox([w.HBox([label, self.service]), self._cloud, self._local, _row(self.connect)])
        self._connected = w.VBox([self.keys_there, self.other_key, _row(self.choose, self.go_on, self.again)])
        super().__init__([w.HTML(_HEAD), self._asking, self.status, self._connected])
        self.add_class("kmsdata-login")
        self._secrets = (self.secret_id, self.secret_key, self.token, self.passphrase, self.repeated)
        self._buttons = (self.connect, self.choose, self.go_on, self.again)


def _field(name: str, hint: str | None = None) -> dict[str, Any]:
    """Return the options of a field: labels have one width, and so do boxes."""
    options = {"description": name, "style": {"description_width": _LABELS}, "layout": _wide()}
    return options if hint is None else options | {"placeholder": hint}


def _wide() -> w.Layout:
    """Return the layout of a field."""
    return w.Layout(width="auto", max_width="560px")


def _button() -> w.Layout:
    """Return the layout of a button."""
    return w.Layout(width="auto", min_width="120px")


def _row(*buttons: w.Button) -> w.HBox:
    """Return a row of buttons, aligned with the fields."""
    return w.HBox(buttons, layout=w.Layout(flex_flow="row wrap", margin=f"4px 0 4px calc({_LABELS} + 6px)"))


def show(widget: w.DOMWidget, shown: bool) -> None:
    """Show or hide a widget."""
    widget.layout.display = None if shown else "none"


def status_html(kind: str, text: str) -> str:
    """Return the HTML of the status line; the kind is ask, busy, good or bad."""
    mark, colour = _MARKS[kind]
    return (
        f'<div role="status" aria-live="polite" class="kmsdata-status" style="border-color:{colour}">'
        f'<b style="color:{colour}">{mark}</b> {html.escape(text)}</div>'
    )


def _regions() -> list[tuple[str, str]]:
    """Return the labels and codes of the regions."""
    return [(f"{name} ({code})", code) for code, name in REGIONS.items()]


def key_choices(keys: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return the labels and URIs of keys.

    A label is the alias (the name of a local key; without an alias the KeyId) and the state.
    """
    listed = [
        (f"{about.get('alias') or about['key'].rpartition('/')[2]}{DOT}{about['state']}", about["key"])
        for about in keys
    ]
    return [*listed, ("another …", OTHER)] if listed else []
