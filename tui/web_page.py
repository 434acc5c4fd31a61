"""The page of redirty top in a browser: complete in itself, it asks no other host for anything."""

from __future__ import annotations

# What textual.js looks for: an element of class textual-terminal with the address of the websocket, and #start; it sets
# classes of the body (-first-byte, -closed).
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>redirty top</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="@BASE@/static/css/xterm.css">
<style>
@font-face {
  font-family: "Roboto Mono";
  src: url("@BASE@/static/fonts/RobotoMono-VariableFont_wght.ttf");
}
body { background: #0c181f; color: #fff; font: 16px "Roboto Mono", monospace; }
.textual-terminal, #starting, #closed { transition: opacity 0.3s ease-out; }
#starting, #closed {
  position: absolute; inset: 0; z-index: 10; display: flex; flex-direction: column; gap: 16px;
  align-items: center; justify-content: center; background: #0c181f;
}
.textual-terminal { opacity: 0; }
body.-first-byte .textual-terminal { opacity: 1; }
body.-first-byte #starting, #closed, #start { display: none; }
body.-closed #closed, #start.-delay { display: flex; }
</style>
<script src="@BASE@/static/js/textual.js"></script>
</head>
<body>
<div id="starting">redirty top<button type="button" id="start" class="again">Start</button></div>
<div id="closed">This page has ended: by itself, or as another one was opened.
<button type="button" class="again">Start again</button></div>
<div id="terminal" class="textual-terminal" data-session-websocket-url="@SOCKET@" data-font-size="16"></div>
<script nonce="@NONCE@">
for (const again of document.querySelectorAll(".again"))
  again.addEventListener("click", () => window.location.reload());
</script>
</body>
</html>
"""
_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-@NONCE@'; style-src 'self' 'unsafe-inline'; font-src 'self'; "
    "img-src 'self' data:; connect-src 'self' @ORIGIN@; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def page(host: str, base: str, nonce: str) -> str:
    """Return the page.

    Args:
        host: the host and the port by which the browser came.
        base: the path of everything but the page itself.
        nonce: of the page's own script.
    """
    found = _PAGE.replace("@BASE@", base).replace("@NONCE@", nonce)
    return found.replace("@SOCKET@", f"ws://{host}{base}/ws")


def policy(host: str, nonce: str) -> str:
    """Return what the page may load, and from where (Content-Security-Policy)."""
    return _POLICY.replace("@NONCE@", nonce).replace("@ORIGIN@", f"ws://{host}")
