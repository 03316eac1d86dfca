"""The OpenAI Realtime protocol in its three dialects.

`wire` receives and sends; `negotiation` knows the dialect and the session that the client configured; `session_object`,
`items` and `responses` know one kind of object each, `server_events` all other events; `schema` validates what clients
send; `dialects` translates from and to GA; `replay` keeps what was sent.
"""

from echosight.wire.realtime.fields import error_message
from echosight.wire.realtime.negotiation import BRIDGE_TURN, SessionTemplate
from echosight.wire.realtime.wire import RealtimeWire

__all__ = ["BRIDGE_TURN", "RealtimeWire", "SessionTemplate", "error_message"]
