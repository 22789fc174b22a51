"""Measure the time per cell of kmsdata's ciphers and of alternatives, on one core, in one run.

``python benchmarks/cells.py [rows]`` prints a table of all methods and the ratios; ``... sweep`` prints where
kmsdata is slower than loops. Times are CPU times of this process. Rounds are interleaved, so that a slow
machine slows all methods; a figure is the median of its rounds, with half the distance between the quartiles.
Only the ratios are comparable between machines.
"""

from __future__ import annotations

import importlib
import io
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

from kmsdata.ciphers import gcm, siv
from kmsdata.ciphers.cells import Cells

KEY, PREFIX, ROUNDS = os.urandom(64), b"\x01abcd", 7
KINDS = {"8 B": (8, 8), "16 B": (16, 16), "20 B": (20, 20), "5-40 B": (5, 40), "20-100 B": (20, 100)}
GOALS = {
    ("gcm", "8 B"): 7,
    ("gcm", "20 B"): 3.5,
    ("gcm", "5-40 B"): 2,
    ("siv", "8 B"): 25,
    ("siv", "20 B"): 8,
}
C_LOOP = r"""
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
int main(int count, char **words) {
    int rows = atoi(words[1]), low = atoi(words[2]), high = atoi(words[3]), got;
    unsigned char key[32] = {1}, in[4096] = {2}, *out = malloc((size_t)rows * (high + 33)), *at = out;
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    EVP_EncryptInit_ex(context, EVP_aes_256_gcm(), 0, key, 0);
    for (int round = 0; round < 4; round++) {
        struct timespec start, stop;
        clock_gettime(CLOCK_MONOTONIC, &start);
        at = out;
        for (int row = 0; row < rows; row++) {
            int length = low + (int)((unsigned)row * 2654435761u >> 8) % (high - low + 1);
            *(int *)(in + 2048) = row;
            EVP_EncryptInit_ex(context, 0, 0, 0, in + 2048);
            EVP_EncryptUpdate(context, at + 17, &got, in, length);
            EVP_EncryptFinal_ex(context, at + 17 + length, &got);
            EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_GET_TAG, 16, at + 17 + length);
            at += length + 33;
        }
        clock_gettime(CLOCK_MONOTONIC, &stop);
        if (round) printf("%f\n", ((stop.tv_sec - start.tv_sec) * 1e9 + stop.tv_nsec - start.tv_nsec) / rows);
    }
}
"""


def make(rows, low, high):
    """Make cells of random bytes, with lengths from low to high."""
    numbers = np.random.default_rng(rows + high)
    if low == high and low:
        return Cells(numbers.integers(0, 256, rows * low, np.uint8), width=low)
    offsets = np.concatenate([[0], np.cumsum(numbers.integers(low, high + 1, rows))]).astype(np.int64)
    return Cells(numbers.integers(0, 256, offsets[-1], np.uint8), offsets)


def ways(cells):
    """Return all methods to encrypt and decrypt these cells: (cipher, direction, name) -> function."""
    rows = cells.rows()
    ivs = np.frombuffer(os.urandom(12 * len(rows)), np.uint8).reshape(-1, 12)
    nonces, aesgcm, aessiv, none = [iv.tobytes() for iv in ivs], AESGCM(KEY[:32]), AESSIV(KEY), [b""]
    sealed = {"gcm": gcm.seal_cells(KEY[:32], PREFIX, cells, ivs), "siv": siv.seal_cells(KEY, PREFIX, cells)}
    bodies = {
        "gcm": [row[17:] for row in sealed["gcm"].rows()],
        "siv": [row[5:] for row in sealed["siv"].rows()],
    }
    found = {
        ("gcm", "encrypt", "kmsdata"): lambda: gcm.seal_cells(KEY[:32], PREFIX, cells, ivs),
        ("gcm", "encrypt", "loop"): lambda: [
            aesgcm.encrypt(iv, row, None) for iv, row in zip(nonces, rows, strict=True)
        ],
        ("gcm", "encrypt", "loop, os.urandom(12) each"): lambda: [
            aesgcm.encrypt(os.urandom(12), row, None) for row in rows
        ],
        ("gcm", "decrypt", "kmsdata"): lambda: gcm.open_cells(KEY[:32], sealed["gcm"]),
        ("gcm", "decrypt", "loop"): lambda: [
            aesgcm.decrypt(iv, body, None) for iv, body in zip(nonces, bodies["gcm"], strict=True)
        ],
        ("siv", "encrypt", "kmsdata"): lambda: siv.seal_cells(KEY, PREFIX, cells),
        ("siv", "encrypt", "loop"): lambda: [aessiv.encrypt(row, none) for row in rows],
        ("siv", "decrypt", "kmsdata"): lambda: siv.open_cells(KEY, sealed["siv"]),
        ("siv", "decrypt", "loop"): lambda: [aessiv.decrypt(body, none) for body in bodies["siv"]],
    }
    return found | tink_ways(rows)


def tink_ways(rows):
    """Return loops over Tink, if it is installed."""
    try:
        tink, aead, daead = (importlib.import_module(name) for name in ("tink", "tink.aead", "tink.daead"))
    except ImportError:
        return {}
    aead.register()
    daead.register()
    one = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM).primitive(aead.Aead)
    two = tink.new_keyset_handle(daead.deterministic_aead_key_templates.AES256_SIV)
    two = two.primitive(daead.DeterministicAead)
    return {
        ("gcm", "encrypt", "loop over Tink"): lambda: [one.encrypt(row, b"") for row in rows],
        ("siv", "encrypt", "loop over Tink"): lambda: [
            two.encrypt_deterministically(row, b"") for row in rows
        ],
    }


def rounds(found, scale=1.0):
    """Measure each method in interleaved rounds, in ns divided by scale; the first round is not counted."""
    times = {way: [] for way in found}
    for turn in range(ROUNDS + 1):
        for way, run in found.items():
            spent = turns = 0
            while spent < 300_000:  # ns; shorter times are too inexact
                start = time.process_time_ns()
                result = run()
                spent += time.process_time_ns() - start
                turns += 1
                del result  # freeing memory is not measured
            if turn:
                times[way].append(spent / turns / scale)
    return times


def show(times):
    """Format median and spread."""
    if not times:
        return "-"
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return f"{middle:.0f} ± {(high - low) / 2:.0f}"


def c_loop(rows):
    """Compile and measure a C loop over OpenSSL EVP: kind -> times; or the reason why it is not possible."""
    if not shutil.which("cc"):
        return "no C compiler"
    with tempfile.TemporaryDirectory() as folder:
        source, program = pathlib.Path(folder, "loop.c"), pathlib.Path(folder, "loop")
        source.write_text(C_LOOP)
        made = subprocess.run(
            ["cc", "-O2", source, "-o", program, "-lcrypto"], capture_output=True, check=False
        )
        if made.returncode:
            return "no OpenSSL headers"
        found = {}
        for kind, (low, high) in KINDS.items():
            words = [program, str(rows), str(low), str(high)]
            out = subprocess.run(words, capture_output=True, check=True, text=True).stdout
            found[kind] = [float(line) for line in out.split()]
        return found


def chdb_loop(rows):
    """Measure ClickHouse in this process, one thread: kind -> times; or the reason why it is not possible."""
    try:
        chdb = importlib.import_module("chdb")
    except ImportError:
        return "not installed"
    found = {}
    for kind, (low, high) in KINDS.items():
        text = f"randomString({low} + number % {high - low + 1})"
        iv = "leftPad(toString(number), 12, '0')"
        rest = f"FROM (SELECT {text} AS t, {iv} AS iv FROM numbers({rows})) SETTINGS max_threads = 1"  # noqa: S608
        times = []
        for _ in range(4):
            spent = []
            for what in ("encrypt('aes-256-gcm', t, repeat('k', 32), iv)", "concat(t, iv)"):
                start = time.perf_counter_ns()
                chdb.query(f"SELECT sum(length({what})) {rest}")
                spent.append(time.perf_counter_ns() - start)
            times.append((spent[0] - spent[1]) / rows)  # without the time to make the texts
        found[kind] = times[1:]
    return found


def table(rows):
    """Print the nanoseconds per cell of all methods, and the ratios."""
    columns = {kind: rounds(ways(make(rows, *ends)), rows) for kind, ends in KINDS.items()}
    lines = {way: {kind: columns[kind].get(way) for kind in KINDS} for way in next(iter(columns.values()))}
    for name, found in (("C loop over OpenSSL EVP", c_loop(rows)), ("ClickHouse (chdb)", chdb_loop(rows))):
        lines["gcm", "encrypt", f"{name}: {found}" if isinstance(found, str) else name] = (
            {} if isinstance(found, str) else found
        )
    print(f"ns per cell, {rows} rows\n{'':44}" + "".join(f"{kind:>16}" for kind in KINDS))
    for way, figures in sorted(lines.items()):
        print(f"{' '.join(way):44}" + "".join(f"{show(figures.get(kind)):>16}" for kind in KINDS))
    print("\ntimes faster than the loop over AESGCM or AESSIV (per round; median, minimum to maximum)")
    for (cipher, kind), goal in GOALS.items():
        for direction in ("encrypt", "decrypt"):
            pairs = zip(
                columns[kind][cipher, direction, "loop"],
                columns[kind][cipher, direction, "kmsdata"],
                strict=True,
            )
            found = sorted(loop / ours for loop, ours in pairs)
            middle = statistics.median(found)
            verdict = "reached" if middle >= goal else "NOT reached"
            print(
                f"{cipher} {direction} {kind:8} {middle:5.1f} ({found[0]:.1f} to {found[-1]:.1f}), "
                f"goal {goal}: {verdict}"
            )


def column_ways(cells):
    """Return loops that begin and end with a column, as users need: split into cells and joined again."""
    ivs = np.frombuffer(os.urandom(12 * cells.count), np.uint8).reshape(-1, 12)
    nonces, aesgcm, aessiv, none = [iv.tobytes() for iv in ivs], AESGCM(KEY[:32]), AESSIV(KEY), [b""]
    sealed = {"gcm": gcm.seal_cells(KEY[:32], PREFIX, cells, ivs), "siv": siv.seal_cells(KEY, PREFIX, cells)}

    def encrypt_gcm():
        pairs = zip(nonces, cells.rows(), strict=True)
        return b"".join([PREFIX + iv + aesgcm.encrypt(iv, row, None) for iv, row in pairs])

    def encrypt_siv():
        return b"".join([PREFIX + aessiv.encrypt(row, none) for row in cells.rows()])

    def cut():
        lengths = (cells.bounds()[1:] - cells.bounds()[:-1]).tolist()
        return b"".join(map(io.BytesIO(cells.data.data).read, lengths))

    return {
        **{(cipher, way, "cut"): cut for cipher in ("gcm", "siv") for way in ("encrypt", "decrypt")},
        ("gcm", "encrypt", "column"): encrypt_gcm,
        ("gcm", "decrypt", "column"): lambda: b"".join(
            [aesgcm.decrypt(row[5:17], row[17:], None) for row in sealed["gcm"].rows()]
        ),
        ("siv", "encrypt", "column"): encrypt_siv,
        ("siv", "decrypt", "column"): lambda: b"".join(
            [aessiv.decrypt(row[5:], none) for row in sealed["siv"].rows()]
        ),
    }


def sweep():
    """Print where kmsdata takes more than 20 microseconds and 5 % longer than a loop.

    It is compared with the bare loop, from Python bytes to a list of Python bytes, and with the loop that
    begins and ends with a column, as kmsdata does. Also counted: where splitting a column and joining it
    again, in the fastest way and without any cipher, already takes longer than that limit.
    """
    widths = [0, 1, 8, 20, 64, 100, 192, 300, 1000, 3000, 10_000, 100_000, 1_000_000]
    shapes = [
        (f"{rows} x {width} B", make(rows, width, width))
        for width in widths
        for rows in (0, 1, 10, 100, 1000, 10_000, 30_000)
        if rows * width <= 2e7
    ]
    shapes += [(f"{rows} x 5-40 B", make(rows, 5, 40)) for rows in (100, 1000, 3000, 10_000)]
    shapes += [(f"{rows} x 0-2000 B", make(rows, 0, 2000)) for rows in (100, 1000, 10_000)]
    lengths = np.random.default_rng(0).permutation(300)
    huge = np.array([8] * 5000 + [1_000_000] + [8] * 5000)
    for name, sizes in (("300 lengths", lengths), ("one of 1 MB among 10000 x 8 B", huge)):
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        shapes.append((name, Cells(np.zeros(offsets[-1], np.uint8), offsets)))
    print(f"{'us':40}{'kmsdata':>10}{'loop':>10}{'column':>10}   over 20 us + 5 % more than: loop, column")
    slower = {"loop": 0, "column": 0}
    hopeless = 0
    for name, cells in shapes:
        found = {way: run for way, run in ways(cells).items() if way[2] in ("kmsdata", "loop")}
        times = rounds(found | column_ways(cells), 1000)
        for cipher in ("gcm", "siv"):
            for direction in ("encrypt", "decrypt"):
                figures = {
                    way: statistics.median(times[cipher, direction, way])
                    for way in ("kmsdata", "loop", "column")
                }
                cut = statistics.median(times[cipher, direction, "cut"])
                marks = ""
                for way in slower:
                    over = figures["kmsdata"] - 1.05 * figures[way] - 20
                    slower[way] += over > 0
                    hopeless += way == "loop" and over > 0 and cut > 0.05 * figures["loop"] + 20
                    marks += f"{over:>9.0f} us" if over > 0 else f"{'-':>12}"
                shown = "".join(f"{figure:>10.0f}" for figure in figures.values())
                print(f"{cipher} {direction} {name:27}{shown}{marks}")
    every = 4 * len(shapes)
    print(f"{slower['loop']} of {every} cases over the loop, {slower['column']} over the loop over a column")
    print(f"in {hopeless} of the {slower['loop']}, splitting and joining alone take more than 20 us + 5 %")


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if sys.argv[1:] == ["sweep"]:
        sweep()
    else:
        table(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
