"""Replace, add or retire wrapped keys, after unwrapping the data key and authenticating its headers.

The cells and everything that is authenticated stay unchanged: only the wrapped keys change, not the data key.
So rewrapping does not revoke access for a user who has the data key or an older copy of the data.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kmsdata.errors import CallerTypeError, CallerValueError, KeyServiceError, KmsDataError, WrongKeyError
from kmsdata.keys.cache import Flights
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import DataKeyRecord, Header, Wrap, merged_records
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.session import resolved, session_key, wrap_under
from kmsdata.keys.unwrap import Operation, authenticate, limits, unwrap

__all__ = ["Change", "Changed", "not_meant"]


@dataclass(frozen=True)
class Changed:
    """The result of rewrapping the data keys of one file, or of other data with headers.

    Attributes:
        records: the records whose wrapped keys changed, by commitment.
        already: how many data keys needed no change.
        other: how many were skipped because they are under other master keys than the one to replace.
        left: messages about wrapped keys that were skipped because they could not be unwrapped.
        intended: in a dry run, instead of ``records``; the new wrapped keys in it have empty texts.
    """

    records: dict[bytes, DataKeyRecord]
    already: int = 0
    other: int = 0
    left: tuple[str, ...] = ()
    intended: dict[bytes, DataKeyRecord] = dataclasses.field(default_factory=dict)


class Change:
    """A change of wrapped keys. One object serves a whole dataset, and several threads.

    Each data key is unwrapped once and wrapped once, even if many files use it; it is kept only as long as
    this object.

    Args:
        key: URI of the new master key; None with ``retire``.
        source: URIs of the master keys whose wrapped keys may be unwrapped and are replaced; None: the
            session's.
        add: add a wrapped key, and replace none.
        retire: URIs of master keys whose wrapped keys are removed.
        dry_run: unwrap nothing and wrap nothing; list in ``intended`` what would be done.

    Raises:
        TypeError, ValueError: the arguments contradict each other.
        FormatError: not a key URI.
        KeyServiceError: the provider of the new key could not resolve an alias.
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
            raise CallerValueError(
                "rewrap() takes either the new master key, or retire= with the key to remove. Both together "
                "take two steps: rewrap(x, new, add=True), later rewrap(x, retire=old)"
            )
        if key is not None and not isinstance(key, str):
            raise CallerTypeError("rewrap() takes the URI of one master key, such as 'local://demo'")
        # A tuple: it is read again for each file, and a generator would be used up after the first one.
        self._source = source if source is None or isinstance(source, str) else tuple(source)
        self._operation = Operation(self._source, "source=", named=key)
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
        """Return the new wrapped keys of the data keys that these headers, given by column, name.

        Raises:
            KeyServiceError: a KMS call failed, so that a data key could not be unwrapped or wrapped.
            WrongKeyError: another data key was unwrapped.
            FormatError: a header was changed after it was written; or there would be more than 16 wrapped
                keys.
            ValueError: the wrapped key to retire is the only one; or several could be replaced and none was
                chosen.
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
        # SPEC.md section 4: check the MAC of every object under these data keys before they are used.
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
        """The number of KMS calls that the change would make; counted in a dry run only."""
        return sum(self._calls.values())

    def _intended(self, record: DataKeyRecord, going: tuple[Wrap, ...]) -> DataKeyRecord:
        """Return the record that a data key would have, as far as that is known without unwrapping it."""
        rest = tuple(wrap for wrap in record.wraps if wrap not in going)
        if self._retire is not None:
            _check_rest(rest, going)
        new = self._key is not None and all(wrap.key != self._key for wrap in rest)
        with self._lock:
            # Adding or retiring unwraps the data key once; replacing unwraps each replaced wrapped key.
            self._calls[record.commitment] = (len(going) if self._key and going else 1) + new
        wraps = (*rest, Wrap(self._key, "")) if new and self._key is not None else rest
        return DataKeyRecord(record.commitment, record.context, wraps)

    def _going(self, record: DataKeyRecord) -> tuple[Wrap, ...] | None:
        """Return the wrapped keys to remove; None if the change does not concern this record."""
        if self._retire is not None:
            return tuple(wrap for wrap in record.wraps if self._retire(parse_key(wrap.key)))
        if self._add:
            return ()
        others = tuple(wrap for wrap in record.wraps if wrap.key != self._key)
        if self._source is not None:
            allowed = self._once.do("source", lambda: limits(self._source))
            # A source that is also the new key is wrapped again: after a rotation, by its newest version.
            found = tuple(wrap for wrap in record.wraps if allowed(parse_key(wrap.key)))
        elif (session := session_key()) is not None:
            allowed = self._once.do(("session", session), lambda: limits(session))
            found = tuple(wrap for wrap in others if allowed(parse_key(wrap.key)))
        elif len(others) > 1:
            named = ", ".join(wrap.key for wrap in others)
            raise CallerValueError(
                f"the data key is under several master keys, {named}. Pass the one to replace (source=), or "
                "add=True"
            )
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
        """Return the data key, and those of the wrapped keys that can be removed."""
        if self._retire is not None:
            rest = tuple(wrap for wrap in record.wraps if wrap not in going)
            _check_rest(rest, going)
            # Nothing is removed unless the caller can unwrap one of the remaining wrapped keys.
            staying = DataKeyRecord(record.commitment, record.context, rest)
            return self._once.do(
                ("unwrap", staying), lambda: unwrap(staying, operation=self._operation)
            ), going
        if self._add:
            return self._once.do(("unwrap", record), lambda: unwrap(record, None, self._operation)), ()
        opened: DataKey | None = None
        good: list[Wrap] = []
        refusal: KmsDataError | None = None
        for wrap in going:
            try:
                data_key = self._by(record, wrap)
            except (KeyServiceError, WrongKeyError) as error:
                refusal = refusal or error
                left.append(
                    f"the wrapped key under {wrap.key} was skipped: it could not be unwrapped: {error}"
                )
                continue
            opened = data_key
            good.append(wrap)
        if opened is None:
            raise refusal or WrongKeyError("there is no wrapped key to unwrap")
        return opened, tuple(good)

    def _by(self, record: DataKeyRecord, wrap: Wrap) -> DataKey:
        """Return the data key from this wrapped key, checked against the commitment."""

        def load() -> DataKey:
            data_key = self._operation.unwrap(record, wrap)
            if data_key is None:
                raise WrongKeyError(
                    f"{wrap.key} unwraps another data key, not the data key that this was encrypted under: "
                    "the header was changed",
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
            else:  # in the place of the first one that it replaces: wrapped keys are tried in order
                wraps += new
                new = []
        return DataKeyRecord(record.commitment, record.context, (*wraps, *new))

    def _has_good(self, record: DataKeyRecord, going: tuple[Wrap, ...], left: list[str]) -> bool:
        """Check whether a remaining wrapped key is under the new key already, and can be unwrapped."""
        for wrap in record.wraps:
            if wrap.key == self._key and wrap not in going:
                try:
                    self._by(record, wrap)
                except (KeyServiceError, WrongKeyError) as error:
                    left.append(
                        f"the wrapped key under {wrap.key} was skipped: it could not be unwrapped: {error}"
                    )
                else:
                    return True
        return False


def _check_rest(rest: Sequence[Wrap], going: Sequence[Wrap]) -> None:
    if not rest:
        raise CallerValueError(
            f"the data key is under {going[0].key} alone: without it, the data could never be decrypted "
            "again. Add another master key first (add=True)"
        )


def not_meant(headers: Sequence[tuple[str, Header]]) -> WrongKeyError:
    """Return the error for data that is under other master keys than the one to replace."""
    wraps = [wrap.key for _, header in headers for record in header.records for wrap in record.wraps]
    named = ", ".join(dict.fromkeys(wraps))
    return WrongKeyError(
        f"the data is encrypted under {named}, which is not the session's key or the one in source=. Pass "
        "the key to replace (source=), or add=True",
        key=wraps[0],
        allowed=False,
    )
