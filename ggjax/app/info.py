"""The command ``info``, which needs no JAX: it answers at once."""

import argparse

from ggjax.app._pipes import name_of
from ggjax.app._terminal import as_json, shown, table
from ggjax.codec.container import info_of_files


def info(args: argparse.Namespace) -> int:
    """Print what compressed files hold, from their headers."""
    found = [(name_of(args, path), i) for path, i in info_of_files(args.input)]
    if args.json:
        told = [{"file": path, **i._asdict(), "tensors": [t._asdict() for t in i.tensors]} for path, i in found]
        print(as_json(told))
        return 0
    for path, i in found:
        size = sum(t.size for t in i.tensors)
        each = f"{size:,} parameters, {8 * i.nbytes / max(size, 1):.3f} bits each"
        print(f"{shown(path)}: format version {i.version}, {i.nbytes:,} bytes, {each}, {i.tables} tables")
        rises = {
            t.name: rise for t in i.tensors if isinstance(rise := dict(t.params).get("rise"), (int, float))
        }
        rows: list[tuple[str, ...]] = [("tensor", "dtype", "shape", "kind", "step", "bytes", "bits")]
        if rises:
            rows[0] += ("share", "rise")
        for t in i.tensors:
            step = "" if t.step is None else f"{t.step:.6g}"
            shape = "x".join(map(str, t.shape)) or "()"
            row: tuple[str, ...] = (
                shown(t.name),
                t.dtype,
                shape,
                t.kind,
                step,
                f"{t.nbytes:,}",
                f"{t.bits:.3f}",
            )
            if rises:
                share = f"{100 * t.nbytes / max(i.nbytes, 1):.1f} %"
                row += (share, f"{rises[t.name]:.3g}" if t.name in rises else "")
            rows.append(row)
        print(table(rows, left=4))
        if rises:
            print("(share of the bytes of the file; rise of the loss as the sensitivity predicted it, in nats")
            print(f"per example: {sum(rises.values()):.4g} in all)")
        for t in i.tensors:
            if t.problem:
                print(f"{shown(t.name)}: {shown(t.problem)}")
    return 0
