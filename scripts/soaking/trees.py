"""A tree of images, what each reads, and random jobs on it."""

import os

import plain_vhd

MIB = 1 << 20


class TreeLab:
    """A base and what is based on it."""

    def __init__(self, runner, rng):
        self.runner, self.rng = runner, rng
        self.size, self.number = 3 * MIB, 0
        kind = rng.choice(["dynamic", "dynamic", "fixed"])
        self.runner.run("create", "base.vhd", "--size", str(self.size), "--type", kind)
        # What each image reads.
        self.disks = {"base.vhd": bytes(self.size)}
        # The parent of each image as two jobs at once change it in some order; else the files say it.
        self.tree = None
        self.write("base.vhd")
        for _ in range(rng.randrange(2, 6)):
            self.child()
        self.jobs = [self.merge, self.merge, self.merge, self.resize, self.new_id, self.rebase, self.compact,
                     self.repair, self.delta]

    def path(self, name):
        return os.path.join(self.runner.top, name)

    def parents(self):
        """The parent of each image that has one."""
        found = {}
        for name in self.disks:
            image = plain_vhd.Image(self.path(name))
            if image.kind == 4:
                found[name] = os.path.basename(image.parent())
        return found

    def leaves(self):
        parents = set(self.parents().values())
        return [name for name in self.disks if name not in parents]

    def write(self, name):
        """A guest writes to a disk."""
        disk = bytearray(self.disks[name])
        image = plain_vhd.Image(self.path(name))
        for _ in range(self.rng.randrange(1, 6)):
            sectors = self.rng.randrange(1, 40)
            at = 512 * self.rng.randrange(self.size // 512 - sectors)
            data = self.rng.randbytes(512 * sectors) if self.rng.random() < 0.8 else bytes(512 * sectors)
            image.write(at, data)
            disk[at:at + len(data)] = data
        self.disks[name] = bytes(disk)

    def child(self):
        parent, name = self.rng.choice(list(self.disks)), f"i{self.number}.avhd"
        self.number += 1
        code, said = self.runner.run("create", name, "--parent", parent)
        assert code == 0, said
        self.disks[name] = self.disks[parent]
        self.write(name)

    def step(self):
        """One job, or two with a crash in the first; then all is as it must be."""
        if len(self.disks) < 3 or self.rng.random() < 0.3:
            self.child()
        if self.rng.random() < 0.4:
            self.write(self.rng.choice(self.leaves()))
        job = self.rng.choice(self.jobs)()
        if job is None:
            return
        args, complete = job
        self.runner.count(args[0])
        if self.rng.random() < 0.15:
            return self.at_once(args, complete)
        done_before = self.done_record(args)
        code = self.runner.faulty(*args)
        if args[0] == "export-delta" and os.path.exists(self.path(args[2])):
            # Killed after the delta had its name: another job may change, or remove, what it was made of.
            code = 0
        if self.done_record(args) not in (None, done_before):
            # Killed among its last markers: it has happened, and others may change or remove its images.
            code = 0
        if code != 0 and self.has_happened(complete):
            # Killed on its way out.
            code = 0
        for _ in range(self.rng.choice([0, 0, 1, 2])):
            if code == 0 or not all(os.path.exists(self.path(name)) for name in self.disks):
                break
            other = self.another()
            if other and other[0] != args:
                self.interfere(*other)
        self.settle(args, complete, code)

    def at_once(self, args, complete):
        """Each of two has happened or not, in some order."""
        other = self.rng.choice(self.jobs)()
        if other is None or "export-delta" in (args[0], other[0][0]):
            other = args, complete
        self.tree = self.parents()
        codes = self.runner.together(args, other[0])
        if other[0] == args:
            # Done once, whoever did it.
            self.tree = None
            return self.settle(args, complete, min(codes))
        done = [end for (_, end), code in zip([(args, complete), other], codes) if code == 0]
        self.take_either_order(done)
        # The one that was refused comes again: first one that had begun, which keeps others away from its images.
        refused = [(job, end, code) for (job, end), code in zip([(args, complete), other], codes) if code != 0]
        refused.sort(key=lambda one: not os.path.exists(self.path(self.record_of(one[0]))))
        for job, end, code in refused:
            self.settle(job, end, code)
        self.check()

    def take_either_order(self, done):
        """Which one came first only shows in what is there."""
        before, size, tree = dict(self.disks), self.size, self.tree
        for order in (done, done[::-1]):
            self.disks, self.size, self.tree = dict(before), size, dict(tree)
            try:
                for end in order:
                    end()
                if self.all_read() and not self.left_over():
                    break
            except KeyError:
                continue
        self.tree = None

    def has_happened(self, complete):
        """Whether all of a job was done: every image reads what it does after it, and no record says that it is open."""
        if self.is_open() or self.all_read():
            return False
        before = dict(self.disks), self.size
        complete()
        done = self.all_read()
        self.disks, self.size = before
        return done

    def all_read(self):
        """Whether every image reads what it must."""
        try:
            return all(plain_vhd.read(self.path(name)) == disk for name, disk in self.disks.items())
        except (OSError, plain_vhd.Unreadable):
            return False

    def is_open(self):
        """Whether a record says that a job is open."""
        return any(name.endswith((".merge", ".resize", ".new-id", ".undo")) for name in os.listdir(self.runner.top))

    def is_done(self, args):
        return args[0] != "merge" or not os.path.exists(self.path(args[1]))

    def another(self):
        """A job, unless the tree can't be read as it is: a change of identity is open."""
        try:
            return self.rng.choice(self.jobs)()
        except plain_vhd.Unreadable:
            return None

    def interfere(self, args, complete):
        """Another job while one may be open: it is refused, or done as a whole."""
        self.runner.count("in between")
        code, _ = self.runner.run(*args)
        if code == 0:
            complete()

    def settle(self, args, complete, code):
        """The same command again, until it has happened or is refused; then every image reads what it must."""
        is_open = self.is_open()
        if code == 0:
            complete()
        elif is_open or self.rng.random() < 0.7 or not self.is_here(args):
            if args[0] == "merge" and self.is_here(args) and not os.path.exists(self.path(self.record_of(args))):
                # It had not begun, and another job may have changed what lies between.
                args, complete = self.merge_into(args[1], args[3])
            code, said = self.runner.run(*args)
            killed_at_the_end = "VHD-E0302" in said and args[0] == "merge" and self.is_done(args)
            exported = args[0] == "export-delta" and os.path.exists(self.path(args[2]))
            if code == 0 or killed_at_the_end or exported:
                complete()
            elif is_open and args[0] in ("merge", "resize", "new-id"):
                record = self.path(self.record_of(args))
                assert not os.path.exists(record), f"{args} can't be finished: {said}"
        self.check()

    def record_of(self, args):
        return {"merge": f"{args[1]}.merge", "resize": "base.vhd.resize"}.get(args[0], f"{args[1]}.new-id")

    def done_record(self, args):
        """Which file says that such a job is done, if one was killed before it removed that."""
        try:
            return os.stat(self.path(self.record_of(args) + ".done")).st_ino
        except FileNotFoundError:
            return None

    def is_here(self, args):
        return os.path.exists(self.path(args[1]))

    def check(self):
        for name, disk in self.disks.items():
            try:
                found = plain_vhd.read(self.path(name))
            except (plain_vhd.Unreadable, OSError) as error:
                raise AssertionError(f"{name}: {error}") from error
            if found != disk:
                at = next((i for i, (a, b) in enumerate(zip(found, disk)) if a != b), min(len(found), len(disk)))
                raise AssertionError(f"{name} differs at {at:#x}, {len(found)} bytes of {len(disk)}")
        others = self.left_over()
        assert not others, f"left over: {others}"

    def left_over(self):
        return [name for name in os.listdir(self.runner.top)
                if name not in self.disks and not name.endswith((".job", ".undo", ".partial", ".done"))]

    def finish(self):
        """At the end every image is sound, and the command reads what the independent reader does."""
        self.check()
        for name in self.disks:
            code, said = self.runner.run("check", name)
            assert code in (0, 4), f"check {name}: {said}"

    def merge(self):
        parents = self.parents()
        if not parents:
            return None
        name = self.rng.choice(sorted(parents))
        line, at = [], name
        while at in parents:
            at = parents[at]
            line.append(at)
        return self.merge_into(name, self.rng.choice(line))

    def merge_into(self, name, into):
        """The merge of what lies between them as the tree is now."""
        before = self.parents()

        def complete():
            if name not in self.disks:
                return
            parents, gone = dict(before) if self.tree is None else self.tree, [name]
            while parents[gone[-1]] != into:
                gone.append(parents[gone[-1]])
            self.disks[into] = self.disks[name]
            for layer in gone:
                self.disks.pop(layer, None)
                parents.pop(layer)
            parents.update({child: into for child, parent in parents.items() if parent in gone})

        return ["merge", name, "--into", into, "--carry"], complete

    def resize(self):
        size = self.size + self.rng.choice([1, 2, 3]) * MIB // 2

        def complete():
            self.size = size
            for name, disk in self.disks.items():
                self.disks[name] = disk[:size].ljust(size, b"\0")

        return ["resize", self.rng.choice(sorted(self.disks)), str(size), "--tree"], complete

    def new_id(self):
        return ["new-id", self.rng.choice(sorted(self.disks)), "--all-children"], lambda: None

    def rebase(self):
        parents = self.parents()
        if not parents:
            return None
        name = self.rng.choice(sorted(parents))
        parent = self.rng.choice([other for other in sorted(self.disks) if other != name])

        def complete():
            if self.tree is not None:
                self.tree[name] = parent

        return ["reparent", name, "--parent", parent, "--rebase"], complete

    def compact(self):
        return ["compact", self.rng.choice(sorted(self.disks))], lambda: None

    def repair(self):
        """One of the two footers is lost."""
        name = self.rng.choice(sorted(self.disks))
        path = self.path(name)
        image = plain_vhd.Image(path)
        is_whole = image.kind != 2 and image.data[:512] == image.data[-512:]
        if is_whole and not os.path.exists(path + ".job"):
            times = os.stat(path)
            with open(path, "r+b") as file:
                file.seek(*self.rng.choice([(0, 0), (-512, 2)]))
                file.write(bytes(512))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            if os.path.exists(path + ".undo"):
                os.remove(path + ".undo")
        return ["repair", name, "--yes"], lambda: None

    def delta(self):
        base, image = self.rng.choice(sorted(self.disks)), self.rng.choice(sorted(self.disks))
        name = f"d{self.number}.avhd"
        self.number += 1

        def complete():
            self.disks[name] = self.disks[image]

        return ["export-delta", image, name, "--since", base], complete
