"""Pairs qimg with qemu-img; see benches/README.md.  Called by compare.sh."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

import data
import images
import random_io

TIB = 1 << 40
DENSITIES = ['0', '0.01c', '1r', '50r', '100']
# A row is worse than its peer if it is by more than this: medians of one and the same
# command differ by about as much.
MARGINS = {'cpu': 1.05, 'wall': 1.05, 'rss': 1.03}

# name -> (arguments, whether it writes); aim from the project's goals
COMMANDS = {
    'info': (['info', '{image}'], False),
    'check': (['check', '{image}'], False),
    'bitmap --add': (['bitmap', '--add', '{image}', 'new'], True),
    'bitmap --merge': (['bitmap', '--merge', 'b', '{image}', 'a'], True),
    'bitmap --clear': (['bitmap', '--clear', '{image}', 'a'], True),
    'bitmap --remove': (['bitmap', '--remove', '{image}', 'a'], True),
    'bitmap --enable': (['bitmap', '--enable', '{image}', 'b'], True),
}


class Bench:
    def __init__(self, args, folder):
        self.args = args
        self.folder = folder
        self.rows = []

    def measure(self, command, copy=None, runs=None, stdin=None):
        head = [self.args.measure, str(runs or self.args.runs)]
        if copy:
            head += ['--copy', *copy]
        if stdin:
            head += ['--stdin', stdin]
        p = subprocess.run([*head, '--', *command], capture_output=True,
                           text=True)
        if p.returncode:
            return {'error': p.stderr.strip().split('\n')[-1]}
        return json.loads(p.stdout)

    def pair(self, what, ours, theirs):
        self.rows.append((what, ours, theirs))
        print(row(what, ours, theirs), flush=True)

    def both(self, what, arguments, image, writes, **names):
        results = []
        for tool in (self.args.qimg, 'qemu-img'):
            copy = None
            target = image
            if writes:
                target = os.path.join(self.folder, 'copy.qcow2')
                copy = (image, target)
            command = [tool] + [a.format(image=target, **names)
                                for a in arguments]
            results.append(self.measure(command, copy))
        self.pair(what, *results)

    def dump(self, density):
        image = images.two_bitmaps(self.folder, TIB, density)
        sock = os.path.join(self.folder, 'nbd.sock')
        script = (
            'qemu-nbd -r -f qcow2 -k {s} -B a {i} & server=$!; '
            'while ! [ -S {s} ]; do sleep 0.002; done; '
            'nbdinfo --json --map=qemu:dirty-bitmap:a "nbd+unix:///?socket={s}";'
            ' wait $server').format(s=sock, i=image)
        theirs = self.measure(['sh', '-c', script], runs=self.args.dump_runs)
        for form in ('json', 'ranges', 'layered'):
            ours = self.measure([self.args.qimg, 'bitmap', '--dump',
                                 '--output=' + form, image, 'a'])
            self.pair('dump 1 TiB %s, %s (qemu-nbd + nbdinfo --json)'
                      % (density, form), ours, theirs)


def ratio(ours, theirs, key):
    return '%.3f' % (ours[key] / theirs[key]) if theirs.get(key) else '-'


def worse(rows, key):
    """The rows in which ours is worse by more than the margin."""
    return ['%s: %s' % (what, ratio(ours, theirs, key))
            for what, ours, theirs in rows
            if 'error' not in ours and 'error' not in theirs
            and key in ours and key in theirs
            and ours[key] > theirs[key] * MARGINS[key]]


def row(what, ours, theirs):
    for side, r in (('qimg', ours), ('peer', theirs)):
        if 'error' in r:
            return '| %s | %s: %s |' % (what, side, r['error'])

    def cell(r):
        memory = '%.1f' % (r['rss'] / (1 << 20)) if 'rss' in r else '-'
        return '%.2f / %.2f / %s' % (r['wall'] * 1e3, r['cpu'] * 1e3, memory)
    return '| %s | %s | %s | %s | %s | %s |' % (
        what, cell(ours), cell(theirs), ratio(ours, theirs, 'wall'),
        ratio(ours, theirs, 'cpu'), ratio(ours, theirs, 'rss'))


def verdict(rows):
    """Names what is worse than its peer; 1 if anything is."""
    lists = [('slower in CPU time', worse(rows, 'cpu')),
             ('slower in wall time', worse(rows, 'wall')),
             ('with more peak memory', worse(rows, 'rss')),
             ('failed', [what for what, ours, theirs in rows
                         if 'error' in ours or 'error' in theirs])]
    print('\n%d rows; worse is by more than %s' % (len(rows), ', '.join(
        '%.0f %% %s' % ((margin - 1) * 100, key)
        for key, margin in MARGINS.items())))
    for what, names in lists:
        print('%d %s%s' % (len(names), what,
                           ''.join('\n  ' + name for name in names)))
    return 1 if any(names for _, names in lists) else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--qimg', required=True)
    parser.add_argument('--measure', required=True)
    parser.add_argument('--random-io', required=True)
    parser.add_argument('--peers', help='the program of benches/peers')
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--dump-runs', type=int, default=3)
    parser.add_argument('--sizes', default='1,16', help='TiB')
    parser.add_argument('--densities', default=','.join(DENSITIES))
    parser.add_argument('--only', default='', help='commands, with commas')
    parser.add_argument('--folder', help='keep the images here')
    args = parser.parse_args()

    parent = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    folder = args.folder or tempfile.mkdtemp(prefix='qimg-bench-', dir=parent)
    os.makedirs(folder, exist_ok=True)
    try:
        bench = Bench(args, folder)
        only = [o for o in args.only.split(',') if o]

        def wanted(name):
            return not only or name in only
        version = subprocess.run(['qemu-img', '--version'], text=True,
                                 capture_output=True).stdout.split('\n')[0]
        print('peer: %s; median of %d runs; images in %s\n' % (
            version, args.runs, 'memory' if parent else 'a temporary folder'))
        print('| command | qimg: wall ms / CPU ms / peak MiB | peer | wall '
              '| CPU | memory |\n|---|---|---|---|---|---|')
        if not only or '--version' in only:
            bench.both('--version', ['--version'], '', False)
        for size in args.sizes.split(','):
            for density in args.densities.split(','):
                if only and not any(name in only for name in COMMANDS):
                    continue
                image = images.two_bitmaps(folder, int(size) * TIB, density)
                for name, (arguments, writes) in COMMANDS.items():
                    if only and name not in only:
                        continue
                    bench.both('%s, %s TiB, %s' % (name, size, density),
                               arguments, image, writes)
                if not args.folder and not (size == '1' and density == '50r'):
                    os.remove(image)
        if not only or 'check of a full disk' in only:
            for disk, scattered in ((TIB, False), (TIB >> 4, True)):
                image = images.full_disk(folder, disk, scattered)
                bench.both('check, full disk of %d GiB, %s' % (
                    disk >> 30, 'scattered' if scattered else 'sequential'),
                    ['check', '{image}'], image, False)
        data.rows(bench, folder, only)
        random_io.rows(bench, folder, wanted)
        random_io.peers(bench, wanted)
        if wanted('dump') and shutil.which('nbdinfo'):
            bench.dump('50r')
        sys.exit(verdict(bench.rows))
    finally:
        if not args.folder:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    main()
