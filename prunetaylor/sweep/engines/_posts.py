"""The tasks or jobs of a cluster, each a post of one worker: as many as trials wait for, others for those lost."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from prunetaylor.sweep.engine_context import EngineFailed, Watch
from prunetaylor.sweep.study.study import Study

_EVERY = 2.0  # seconds between two looks at what waits
_DEATHS = 3  # posts in a row that end before they have a trial: there is something wrong with all of them


class Cluster(Protocol):
    """What runs posts."""

    pause: float
    """Seconds between two looks."""

    def most(self) -> int:
        """Return the number of posts that there may be at the same time."""

    def start(self, post: str) -> Any:
        """Start a post of that name; whatever this cluster knows it by."""

    def ended(self, posts: Mapping[str, Any]) -> Mapping[str, str | None]:
        """Return the names of those that are over, each with the reason; None where it ended by itself."""

    def stop(self, posts: Mapping[str, Any]) -> None:
        """End these, and wait for them to give back what they hold."""


def man(cluster: Cluster, study: Study, watch: Watch) -> None:
    """Keep the cluster's posts manned until no trial waits. What is left of them is ended when this is left."""
    posts: dict[str, Any] = {}
    lost: dict[str, str] = {}
    in_vain, looked = 0, -_EVERY
    try:
        while True:
            ended = cluster.ended(posts)
            for post, why in ended.items():
                del posts[post]
                lost[post] = why or "its task ended"
                in_vain = 0 if study.has_taken(post) or not study.waiting or study.stopping else in_vain + 1
                if why is not None:
                    watch.note(why)
                if in_vain == _DEATHS:
                    raise EngineFailed(f"{_DEATHS} tasks in a row ended before they had a trial: {lost[post]}")
            for post in [one for one, why in lost.items() if study.release_post(one, why)]:
                del lost[post]
            if ended or time.monotonic() - looked >= _EVERY:
                _hire(cluster, study, posts)
                looked = time.monotonic()
            if not posts and not lost and (study.stopping or not study.waiting):
                return
            time.sleep(cluster.pause)
    finally:
        cluster.stop(posts)


def _hire(cluster: Cluster, study: Study, posts: dict[str, Any]) -> None:
    waiting = study.waiting
    if not waiting or study.stopping:
        return
    idle = sum(post not in study.busy() for post in posts)
    for _ in range(min(cluster.most() - len(posts), waiting - idle)):
        post = uuid.uuid4().hex
        posts[post] = cluster.start(post)
