"""The OpenAI Realtime protocol in its three dialects.

`wire` receives and sends; `session_object`, `items` and `replies` know one kind of object each, `telling` all other
events; `schema` checks what clients send; `dialects` renames what is written in GA; `log` keeps what was sent.
"""

from echosight.wire.realtime.fields import error_message
from echosight.wire.realtime.wire import BRIDGE_TURN, RealtimeWire, SessionTemplate

__all__ = ["BRIDGE_TURN", "RealtimeWire", "SessionTemplate", "error_message"]
