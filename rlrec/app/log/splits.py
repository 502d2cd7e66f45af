"""Functions here find the split of a user or a session: train, tune or gate. A user always stays in one split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import numpy as np

from rlrec.arrays import Ids

TRAIN, TUNE, GATE = 0, 1, 2
BOUNDS = 0.6, 0.8  # the shares at which the second and the third split begin


def splits(salt: str, unit_keys: Iterable[str]) -> list[int]:
    """Return the split of each user or session: 0 train (60 %), 1 tune (20 %), 2 gate (20 %). The split of a key never
    changes. salt: the setting `Settings.split_salt`; unit_keys: the keys of the users or sessions."""
    start = f"{salt}/split/"
    digests = b"".join([sha256((start + key).encode()).digest() for key in unit_keys])
    return np.searchsorted(BOUNDS, np.frombuffer(digests, ">u8")[::4] / 2.0**64, side="right").tolist()


def owner_splits(salt: str, keys: Mapping[str, Any]) -> Ids:
    """Return the split of each of s sessions, (s,). It is the split of the user who is known now for the session. If
    there is no user, it is computed from the session's own key. keys: the keys of sessions and their users, from the
    field `keys` of `Batch`."""
    pairs = zip(keys["key"].tolist(), keys["user"].tolist(), strict=True)
    return np.array(splits(salt, [user or key for key, user in pairs]), np.int64)
