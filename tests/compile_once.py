"""A C compiler that keeps what it makes of its standard input, for the many processes of the tests that need the same.

    python compile_once.py FOLDER COMPILER ARGUMENT... -o TARGET ... < SOURCE

The files that a source includes are not looked at: they stay as they are while the tests run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path


def main() -> int:
    folder, *command = sys.argv[1:]
    if "-" not in command or "-o" not in command:
        return subprocess.run(command).returncode
    source = sys.stdin.buffer.read()
    place = command.index("-o") + 1
    target = command[place]
    said = "\0".join([*command[:place], *command[place + 1 :]]).encode()
    kept = Path(folder) / hashlib.sha256(said + b"\0" + source).hexdigest()
    if not kept.exists():
        done = subprocess.run(command, input=source)
        if done.returncode:
            return done.returncode
        # Others may look for it meanwhile: it is there whole or not at all.
        part = kept.with_suffix(f".{os.getpid()}")
        shutil.copy(target, part)
        part.replace(kept)
    shutil.copy(kept, target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
