"""The wraps of data keys: replaced, added or retired, after the data key was opened and its headers checked.

The cells, and what is authenticated, stay as they are: a wrap is the data key under one master key, and the
data key does not change. So this takes rights from nobody who has the data key, or an older copy of the data.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kmsdata.errors import KeyServiceError, KmsDataError, WrongKeyError
from kmsdata.keys.cache import Flights
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import DataKeyRecord, Header, Wrap, merged_records
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.session import resolved, session_key, wrap_under
from kmsdata.keys.unwrap import authenticate, limits, unwrap, unwrap_by

__all__ = ["Change", "Changed", "not_meant"]


@dataclass(frozen=True)
class Changed:
    """What became of the data keys of one file, or of what else has headers.

    Attributes:
        records: by commitment, those that have other wraps now.
        already: how many were as they were asked to be.
        other: how many are under other master keys than the one to be replaced, and were left alone.
        left: sentences on wraps that were left alone because they do not open.
        intended: of a dry run, in place of ``records``: with empty texts for the new wraps.
    """

    records: dict[bytes, DataKeyRecord]
    already: int = 0
    other: int = 0
    left: tuple[str, ...] = ()
    intended: dict[bytes, DataKeyRecord] = dataclasses.field(default_factory=dict)


class Change:
    """What is to become of the wraps. One serves a whole dataset, from several threads.

    Each data key is unwrapped once, and wrapped once, however many files are under it; it is forgotten with
    this object.

    Args:
        key: URI of the master key that wraps anew; None with ``retire``.
        source: URIs of the master keys whose wraps may be opened, and are replaced; None: the session's.
        add: add a wrap, and replace none.
        retire: URIs of master keys whose wraps are removed.
        dry_run: open nothing and wrap nothing; say in ``intended`` what would be done.

    Raises:
        TypeError, ValueError: arguments that do not go together.
        FormatError: not a key URI.
        KeyServiceError: the provider of the new key refused to say which key an alias stands for.
    """

    def __init__(
        self,
        key: str | None,
        *,
        source: str | Iterable[str] | None = None,
        add: bool = False,
        retire: str | Iterable[str] | None = None,
        dry_run: bool = False,
    ) -> None:
        if (key is None) == (retire is None) or (retire is not None and add):
            raise ValueError(
                "rewrap() takes the key to wrap anew by, or retire= and the key whose wraps to remove. Both "
                "are two steps: rewrap(x, new, add=True), later rewrap(x, retire=old)"
            )
        if key is not None and not isinstance(key, str):
            raise TypeError("rewrap() takes the URI of one master key, such as 'local://demo'")
        # A tuple, since opening goes by it as well: the first file would use up a generator.
        self._source = source if source is None or isinstance(source, str) else tuple(source)
        if self._source is not None:
            limits(self._source)
        self._add = add
        self._key = None
        if key is not None:
            parse_key(key)
            self._key = resolved(key)
        self._retire = None if retire is None else limits(retire)
        self.dry_run = dry_run
        self._calls: dict[bytes, int] = {}
        self._lock = threading.Lock()
        self._once = Flights(keep=True)

    def __call__(self, headers: Sequence[tuple[str, Header]]) -> Changed:
        """The new wraps of the data keys that these headers, by column, name.

        Raises:
            KeyServiceError: a key service refused, so that a data key could not be opened, or not be wrapped.
            WrongKeyError: what was unwrapped is another data key.
            FormatError: a header was changed after it was written; or more than 16 wraps.
            ValueError: a wrap to be retired is the only one; or it was not said which of several to replace.
        """
        records = merged_records(record for _, header in headers for record in header.records)
        already = other = 0
        left: list[str] = []
        keys: dict[bytes, DataKey] = {}
        concerned: dict[bytes, tuple[Wrap, ...]] = {}
        intended: dict[bytes, DataKeyRecord] = {}
        for commitment, record in records.items():
            going = self._going(record)
            if going is None:
                other += 1
            elif self._is_done(record, going):
                already += 1
            elif self.dry_run:
                intended[commitment] = self._intended(record, going)
            else:
                keys[commitment], concerned[commitment] = self._opened(record, going, left)
        # The MAC of every object under these data keys, before anything is made of them (SPEC.md section 4).
        for name, header in headers:
            if checked := [item for item in header.columns if item.data_key in keys]:
                authenticate(Header.of(checked, header.records), keys, name)
        changed = {
            commitment: self._with_new_wrap(records[commitment], keys[commitment], going, left)
            for commitment, going in concerned.items()
        }
        return Changed(changed, already, other, tuple(dict.fromkeys(left)), intended)

    @property
    def calls(self) -> int:
        """Of a dry run: how many calls of key services the change would take."""
        return sum(self._calls.values())

    def _intended(self, record: DataKeyRecord, going: tuple[Wrap, ...]) -> DataKeyRecord:
        """What would become of a data key, as far as it can be said without opening it."""
        rest = tuple(wrap for wrap in record.wraps if wrap not in going)
        if self._retire is not None:
            _check_rest(rest, going)
        new = self._key is not None and all(wrap.key != self._key for wrap in rest)
        with self._lock:
            # To add or to retire opens it once; to replace opens each wrap that goes.
            self._calls[record.commitment] = (len(going) if self._key and going else 1) + new
        wraps = (*rest, Wrap(self._key, "")) if new and self._key is not None else rest
        return DataKeyRecord(record.commitment, record.context, wraps)

    def _going(self, record: DataKeyRecord) -> tuple[Wrap, ...] | None:
        """The wraps that are to go; None where the record is not one of those that are meant."""
        if self._retire is not None:
            return tuple(wrap for wrap in record.wraps if self._retire(parse_key(wrap.key)))
        if self._add:
            return ()
        others = tuple(wrap for wrap in record.wraps if wrap.key != self._key)
        if self._source is not None:
            allowed = self._once.do("source", lambda: limits(self._source))
            # A source that is the new key as well is wrapped anew: by its newest version, after a rotation.
            found = tuple(wrap for wrap in record.wraps if allowed(parse_key(wrap.key)))
        elif (session := session_key()) is not None:
            allowed = self._once.do(("session", session), lambda: limits(session))
            found = tuple(wrap for wrap in others if allowed(parse_key(wrap.key)))
        elif len(others) > 1:
            named = ", ".join(wrap.key for wrap in others)
            raise ValueError(f"under {named}: say which of them is to be replaced (source=), or add=True")
        else:
            found = others
        return found if found or len(others) < len(record.wraps) else None

    def _is_done(self, record: DataKeyRecord, going: tuple[Wrap, ...]) -> bool:
        if self._add:
            return any(wrap.key == self._key for wrap in record.wraps)
        return not going

    def _opened(
        self, record: DataKeyRecord, going: tuple[Wrap, ...], left: list[str]
    ) -> tuple[DataKey, tuple[Wrap, ...]]:
        """The data key, and those of the wraps to go that may go."""
        if self._retire is not None:
            rest = tuple(wrap for wrap in record.wraps if wrap not in going)
            _check_rest(rest, going)
            # One of those that stay must open, by whoever does this, or nothing goes.
            staying = DataKeyRecord(record.commitment, record.context, rest)
            return self._once.do(("unwrap", staying), lambda: unwrap(staying, self._source)), going
        if self._add:
            return self._once.do(("unwrap", record), lambda: unwrap(record, self._source)), ()
        opened: DataKey | None = None
        good: list[Wrap] = []
        refusal: KmsDataError | None = None
        for wrap in going:
            try:
                data_key = self._by(record, wrap)
            except (KeyServiceError, WrongKeyError) as error:
                refusal = refusal or error
                left.append(f"the wrap under {wrap.key} was left alone, for it does not open: {error}")
                continue
            opened = data_key
            good.append(wrap)
        if opened is None:
            raise refusal or WrongKeyError("no wrap to open")
        return opened, tuple(good)

    def _by(self, record: DataKeyRecord, wrap: Wrap) -> DataKey:
        """The data key that this wrap holds, checked against the commitment."""

        def load() -> DataKey:
            data_key = unwrap_by(record, wrap)
            if data_key is None:
                raise WrongKeyError(
                    f"what {wrap.key} unwraps is not the data key that this was encrypted under: the header "
                    "was changed",
                    key=wrap.key,
                )
            return data_key

        return self._once.do(("wrap", record.commitment, record.context, wrap), load)

    def _with_new_wrap(
        self, record: DataKeyRecord, data_key: DataKey, going: tuple[Wrap, ...], left: list[str]
    ) -> DataKeyRecord:
        new: list[Wrap] = []
        if (key := self._key) is not None and not self._has_good(record, going, left):
            new = [
                self._once.do(("new", record.commitment, record.context), lambda: wrap_under(data_key, key))
            ]
        wraps: list[Wrap] = []
        for wrap in record.wraps:
            if wrap not in going:
                wraps.append(wrap)
            else:  # the new one stands where the first that it replaces stood: wraps are tried in order
                wraps += new
                new = []
        return DataKeyRecord(record.commitment, record.context, (*wraps, *new))

    def _has_good(self, record: DataKeyRecord, going: tuple[Wrap, ...], left: list[str]) -> bool:
        """Whether a wrap that stays is under the new key already, and opens."""
        for wrap in record.wraps:
            if wrap.key == self._key and wrap not in going:
                try:
                    self._by(record, wrap)
                except (KeyServiceError, WrongKeyError) as error:
                    left.append(f"the wrap under {wrap.key} was left alone, for it does not open: {error}")
                else:
                    return True
        return False


def _check_rest(rest: Sequence[Wrap], going: Sequence[Wrap]) -> None:
    if not rest:
        raise ValueError(
            f"its data key is under {going[0].key} alone, and would never open again: add another "
            "wrap first (add=True)"
        )


def not_meant(headers: Sequence[tuple[str, Header]]) -> WrongKeyError:
    """The error for data that is under other master keys than the one to be replaced."""
    wraps = [wrap.key for _, header in headers for record in header.records for wrap in record.wraps]
    named = ", ".join(dict.fromkeys(wraps))
    return WrongKeyError(
        f"under {named}, which is not the session's key or the one that source= names: name the one to be "
        "replaced (source=), or add=True",
        key=wraps[0],
        allowed=False,
    )
