"""Runs the program, with or without something going wrong."""

import json
import subprocess

WRITING = ["pwrite64", "pwritev", "write", "fsync", "fdatasync", "ftruncate", "fallocate", "linkat", "rename",
           "renameat", "renameat2", "unlink", "unlinkat"]
FULL = "pwrite64,pwritev,write,fallocate,ftruncate,linkat"
BROKEN = "pwrite64,pwritev,pread64,preadv,fsync,fdatasync"
# Seconds: no job here takes one.
LIMIT = 120
KILLED = {-9, 137}
# Could not run; corrupt record; parent missing while a change of identity is open; in use; refused; 127: a library could
# not be read.
ORDERLY = {1, 3, 6, 7, 8, 127}


class Runner:
    """The program in a directory."""

    def __init__(self, vhd, top, rng, totals):
        self.vhd, self.top, self.rng, self.totals = vhd, top, rng, totals
        self.log = []

    def count(self, what):
        self.totals[what] = self.totals.get(what, 0) + 1

    def run(self, *args, fault=None):
        """Runs it; its exit code and what it said."""
        command = [*(fault or []), self.vhd, *args]
        done = subprocess.run(command, cwd=self.top, capture_output=True, text=True, timeout=LIMIT, check=False)
        self.note(args, fault, done.returncode, done.stderr)
        return done.returncode, done.stderr

    def note(self, args, fault, code, stderr):
        said = stderr.strip().splitlines()[-1:] or [""]
        self.log.append(f"  {' '.join(fault or [])} vhd {' '.join(args)}  -> {code} {said[0]}")
        assert code in KILLED or code in ORDERLY | {0, 4, 5}, f"exit code {code}: {stderr}"

    def json(self, *args):
        """Runs it and takes its report."""
        command = [self.vhd, *args, "--json"]
        done = subprocess.run(command, cwd=self.top, capture_output=True, text=True, timeout=LIMIT, check=False)
        self.note(args, None, done.returncode, done.stderr)
        assert done.returncode == 0, f"{args}: {done.stderr}"
        return json.loads(done.stdout)

    def faulty(self, *args):
        """Runs it with something going wrong, most of the time; its exit code."""
        rng, strace = self.rng, ["strace", "-f", "-qqq", "-o", "/dev/null"]
        kind = rng.choice(["none", "kill", "kill", "kill", "timer", "space", "io"])
        self.count(f"with {kind}")
        if kind == "kill":
            call, when = rng.choice(WRITING), rng.choice([1, 1, 2, 2, 3, 4, 5, 6, 8, 10, 14, 20, 30])
            return self.run(*args, fault=[*strace, "-e", f"inject={call}:signal=KILL:when={when}"])[0]
        if kind == "space":
            return self.run(*args, fault=[*strace, "-e", f"inject={FULL}:error=ENOSPC:when={rng.randrange(1, 20)}+"])[0]
        if kind == "io":
            return self.run(*args, fault=[*strace, "-e", f"inject={BROKEN}:error=EIO:when={rng.randrange(1, 30)}"])[0]
        if kind == "timer":
            return self.run(*args, fault=["timeout", "-s", "KILL", f"{rng.uniform(0.002, 0.06):.4f}"])[0]
        return self.run(*args)[0]

    def together(self, first, second):
        """Runs two at once."""
        self.count("two at once")
        running = [subprocess.Popen([self.vhd, *args], cwd=self.top, stdout=subprocess.DEVNULL,
                                    stderr=subprocess.PIPE, text=True) for args in (first, second)]
        codes = []
        for args, process in zip((first, second), running):
            _, stderr = process.communicate(timeout=LIMIT)
            self.note(args, ["(at once)"], process.returncode, stderr)
            codes.append(process.returncode)
        return codes
