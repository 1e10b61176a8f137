"""A disk with snapshots, what each of them reads, and random commands on it."""

import os

import plain_vhd

MIB = 1 << 20


class SnapshotLab:
    """A disk and its snapshots."""

    def __init__(self, runner, rng):
        self.runner, self.rng, self.number = runner, rng, 0
        kind = rng.choice(["dynamic", "dynamic", "fixed"])
        runner.run("create", "vm.vhd", "--size", str(2 * MIB), "--type", kind)
        self.snapshots, self.now = {}, bytes(2 * MIB)
        self.write()

    def shown(self):
        return self.runner.json("snapshot", "list", "vm.vhd")

    def path(self, file):
        return os.path.join(self.runner.top, file)

    def write(self):
        path = self.path(self.shown()["now"]["file"])
        if os.path.exists(path + ".job"):
            return
        disk, image = bytearray(self.now), plain_vhd.Image(path)
        for _ in range(self.rng.randrange(1, 5)):
            sectors = self.rng.randrange(1, 40)
            at = 512 * self.rng.randrange(len(disk) // 512 - sectors)
            data = self.rng.randbytes(512 * sectors)
            image.write(at, data)
            disk[at:at + len(data)] = data
        self.now = bytes(disk)

    def step(self):
        if self.rng.random() < 0.6:
            self.write()
        names, pick = sorted(self.snapshots), self.rng.random()
        if pick < 0.4 or not names:
            self.number += 1
            self.command("create", "--name", f"s{self.number}", made=f"s{self.number}")
        elif pick < 0.55:
            self.command("apply", self.rng.choice(names), keeps=True)
        elif pick < 0.65:
            self.command("apply", self.rng.choice(names), "--discard-current")
        elif pick < 0.75:
            self.command("revert")
        else:
            gone = self.rng.choice(names)
            self.command("delete", gone, gone=gone)

    def command(self, verb, *args, made=None, gone=None, keeps=False):
        """Runs it, something may go wrong, and takes over what became of it: all of it or nothing."""
        words = ["snapshot", verb, "vm.vhd", *args]
        self.runner.count(f"snapshot {verb}")
        for _ in range(self.rng.choice([1, 1, 2])):
            before = self.now
            code = self.runner.faulty(*words)
            self.take_over(made, gone, verb)
            if keeps and self.now != before:
                held = before in self.snapshots.values()
                assert held, f"{words}: the present state was dropped, and no snapshot has it"
            if code == 0:
                break

    def take_over(self, made, gone, verb):
        shown = self.shown()
        files = {one["name"]: one["file"] for one in shown["snapshots"] if not one["deleted"]}
        expected = dict(self.snapshots)
        if made in files and made not in expected:
            expected[made] = self.now
        if gone is not None and gone not in files:
            expected.pop(gone, None)
        assert set(files) == set(expected), f"{sorted(files)} are there, expected {sorted(expected)}"
        for name, file in files.items():
            if not self.is_between(file):
                assert plain_vhd.read(self.path(file)) == expected[name], f"snapshot {name} reads something else"
        self.snapshots = expected
        file = shown["now"]["file"]
        now = plain_vhd.read(self.path(file))
        if now != self.now:
            applied = verb in ("apply", "revert") and now in self.snapshots.values()
            assert applied, "the present state reads something else"
            self.now = now

    def is_between(self, file):
        """The target of an unfinished merge is nobody's state until the manifest says so."""
        return os.path.exists(self.path(file) + ".job")

    def finish(self):
        """The next command finishes what is open."""
        self.number += 1
        code, said = self.runner.run("snapshot", "create", "vm.vhd", "--name", f"s{self.number}")
        assert code == 0, said
        self.take_over(f"s{self.number}", None, "create")
        left = [name for name in os.listdir(self.runner.top) if name.endswith((".merge", ".done"))]
        assert not left, f"left over: {left}"
        for one in self.shown()["snapshots"]:
            code, said = self.runner.run("check", one["file"])
            assert code in (0, 4), said
