"""Has the server asked not to be used? `X-Robots-Tag` in every form in which it is sent, and `TDM-Reservation`.

X-Robots-Tag: noai, noimageai
X-Robots-Tag: otherbot: noindex, nofollow       (for whoever goes by that name)
X-Robots-Tag: unavailable_after: 25 Jun 2030 15:00:00 PST, noai
TDM-Reservation: 1                              (W3C's protocol for text and data mining)
"""

from __future__ import annotations

from collections.abc import Collection
from email.message import Message

_WITH_VALUE = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}  # `name: value`, no agent
_NONE = {"noindex", "nofollow"}  # what `none` stands for


def opted_out(headers: Message, directives: Collection[str], user_agent_token: str | None = None) -> bool:
    """Whether the answer with these headers must not be kept.

    directives: those that are obeyed, in lower case; with none of them no header is. user_agent_token: the name
    under which a server may address us; directives for other names are not ours.
    """
    if not directives:
        return False
    if headers.get("TDM-Reservation", "").strip() == "1":
        return True
    us = {"*", (user_agent_token or "*").strip().lower()}
    return any(_obeyed(value.lower(), directives, us) for value in headers.get_all("X-Robots-Tag", []))


def _obeyed(value: str, directives: Collection[str], us: set[str]) -> bool:
    agent = "*"
    for part in value.split(","):
        name, colon, rest = (text.strip() for text in part.partition(":"))
        if colon and name not in _WITH_VALUE:
            agent, name = name, rest
        meant = _NONE if name == "none" else {name}
        if agent in us and not meant.isdisjoint(directives):
            return True
    return False
