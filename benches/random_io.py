"""Rows about random requests of 4 KiB through the library, `random_io`: next to qemu-img
and qemu-io, and to other libraries, `benches/peers`."""

import json
import os
import subprocess

GIB = 1 << 30
BYTES = 4096
# Odd in clusters and in requests, so that they go all over the disk.
STEP = (389 << 20) + (77 << 12)


def rows(bench, folder, wanted):
    if not wanted('random'):
        return
    full = os.path.join(folder, 'random.qcow2')
    empty = os.path.join(folder, 'random-empty.qcow2')
    for image in (full, empty):
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', image, '1G'],
                       check=True)
    # All of it written, in order.
    subprocess.run([bench.args.random_io, full, 'write', str(GIB // BYTES),
                    str(BYTES)], check=True, stdout=subprocess.DEVNULL)
    for what, image, mode, count in (
            ('reads', full, 'read', 50000),
            ('writes into allocated clusters', full, 'write', 50000),
            ('writes into an empty image', empty, 'write', 20000)):
        requests(bench, folder, what, image, mode, count)
    os.remove(full)
    os.remove(empty)


def requests(bench, folder, what, image, mode, count):
    copy, target = None, image
    if mode == 'write':
        target = os.path.join(folder, 'random-copy.qcow2')
        copy = (image, target)
    ours = bench.measure([bench.args.random_io, target, mode, str(count),
                          str(STEP)], copy)
    row = 'library, %d random %s, ' % (count, what)

    write = ['-w'] if mode == 'write' else []
    for depth in (1, 64):
        theirs = bench.measure(
            ['qemu-img', 'bench', *write, '-f', 'qcow2', '-d', str(depth),
             '-s', str(BYTES), '-S', str(STEP), '-c', str(count), target],
            copy)
        bench.pair(row + 'qemu-img bench -d %d' % depth, ours, theirs)

    commands = os.path.join(folder, 'commands')
    with open(commands, 'w') as file:
        for offset in offsets(count):
            pattern = '-P 7 ' if mode == 'write' else ''
            file.write('%s -q %s%d %d\n' % (mode, pattern, offset, BYTES))
        if mode == 'write':
            file.write('flush\n')
    command = ['qemu-io', '-f', 'qcow2', target]
    theirs = bench.measure(command, copy, stdin=commands)
    # Its start, and the end of an image that nothing was done to, are not the requests'.
    start = bench.measure(command, copy)
    if 'error' not in theirs and 'error' not in start:
        for key in ('wall', 'cpu'):
            theirs[key] = max(theirs[key] - start[key], 1e-6)
    bench.pair(row + 'qemu-io, its start subtracted', ours, theirs)
    os.remove(commands)
    if copy:
        os.remove(target)


def offsets(count):
    """Those of qemu-img bench, and of random_io."""
    at = 0
    for _ in range(count):
        yield at
        at += STEP
        if at > GIB - BYTES:
            at %= GIB
            if at > GIB - BYTES:
                at = 0


def peers(bench, wanted):
    """Rows next to other libraries; they tell no memory."""
    if not bench.args.peers or not wanted('peers'):
        return
    run = subprocess.run([bench.args.peers, '--json', '-', '50000'],
                         capture_output=True, text=True)
    rows = [json.loads(line) for line in run.stdout.splitlines()
            if line.startswith('{')]
    ours = None
    for row in rows:
        if ours is None or row['title'] != ours['title']:
            ours = row
        else:
            bench.pair('%s, %s' % (row['title'], row['library']), ours, row)
    if run.returncode:
        reason = run.stderr.strip().split('\n')[-1]
        bench.pair('peers', {}, {'error': reason})
