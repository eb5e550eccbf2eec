#!/usr/bin/env python3
"""Makes testdata/qcow2/ with a real QEMU: one image and one record for each.

    testdata/make.py            remakes everything, README.md's table included
    testdata/make.py NAME...    remakes some images

Needs qemu-img, qemu-io, qemu-storage-daemon and nbdinfo (libnbd); standard
library only.  The record holds the commands and the truth about the image:
bitmaps with state, count and SHA-256 as qemu-storage-daemon tells them, and
dirty ranges as nbdinfo, a client of somebody else's, sees them over NBD.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, 'qcow2')


class Maker:
    """Runs commands in a scratch directory and remembers them."""

    def __init__(self, folder):
        self.folder = folder
        self.commands = []

    def run(self, *args, log=True):
        if log:
            self.commands.append(shlex.join(args))
        p = subprocess.run(args, cwd=self.folder, stdin=subprocess.DEVNULL,
                           capture_output=True, text=True)
        if p.returncode or 'failed' in p.stdout:
            sys.exit('%s: exit %d\n%s%s' % (shlex.join(args), p.returncode,
                                            p.stdout, p.stderr))
        return p.stdout

    def create(self, image, size, options):
        self.run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options,
                 image, size)

    def bitmap(self, image, name, *actions):
        self.run('qemu-img', 'bitmap', *actions, image, name)

    def io(self, image, *commands):
        args = ['qemu-io', '-f', 'qcow2', '-d', 'unmap']
        for c in commands:
            args += ['-c', c]
        self.run(*args, image)

    def patch(self, image, offset, data, why):
        self.commands.append('# %s: bytes %s at %d' % (why, data.hex(), offset))
        with open(os.path.join(self.folder, image), 'r+b') as f:
            f.seek(offset)
            f.write(data)


class Daemon:
    """A qemu-storage-daemon over QMP on its standard input and output."""

    def __init__(self, folder):
        self.proc = subprocess.Popen(
            ['qemu-storage-daemon', '--chardev', 'stdio,id=m', '--monitor', 'm'],
            cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.cmd('qmp_capabilities')

    def cmd(self, name, /, **arguments):
        arguments = {k.replace('_', '-'): v for k, v in arguments.items()}
        print(json.dumps({'execute': name, 'arguments': arguments}),
              file=self.proc.stdin, flush=True)
        for line in self.proc.stdout:
            reply = json.loads(line)
            if 'return' in reply:
                return reply['return']
            if 'error' in reply:
                sys.exit('%s: %s' % (name, reply['error']['desc']))
        sys.exit('%s: the daemon went away' % name)

    def open(self, image, **more):
        self.cmd('blockdev-add', driver='qcow2', node_name='n',
                 file={'driver': 'file', 'filename': image}, **more)

    def kill(self):
        self.proc.kill()
        self.proc.wait()

    def quit(self):
        self.cmd('quit')
        self.proc.wait()


def truth(folder, image):
    """What QEMU says about the persistent bitmaps of the image, by name."""
    daemon = Daemon(folder)
    daemon.open(image, read_only=True)
    node, = [n for n in daemon.cmd('query-named-block-nodes', flat=True)
             if n['node-name'] == 'n']
    sock = os.path.join(folder, 'nbd')
    daemon.cmd('nbd-server-start',
               addr={'type': 'unix', 'data': {'path': sock}})
    out = []
    for b in sorted(node.get('dirty-bitmaps', []), key=lambda b: b['name']):
        name = b['name']
        entry = {'name': name, 'granularity': b['granularity']}
        out.append(entry)
        if b.get('inconsistent'):
            entry['state'] = 'inconsistent'
            continue
        entry['state'] = 'recording' if b['recording'] else 'disabled'
        entry['count'] = b['count']
        entry['sha256'] = daemon.cmd('x-debug-block-dirty-bitmap-sha256',
                                     node='n', name=name)['sha256']
        daemon.cmd('block-export-add', type='nbd', id='x', node_name='n',
                   name='e', bitmaps=[name])
        extents = json.loads(subprocess.run(
            ['nbdinfo', '--json', '--map=qemu:dirty-bitmap:' + name,
             'nbd+unix:///e?socket=' + sock],
            check=True, capture_output=True, text=True).stdout)
        ranges = entry['ranges'] = []
        for e in extents:
            if not e['type'] & 1:
                continue
            if ranges and sum(ranges[-1]) == e['offset']:
                ranges[-1][1] += e['length']
            else:
                ranges.append([e['offset'], e['length']])
        daemon.cmd('block-export-del', id='x', mode='hard')
        while daemon.cmd('query-block-exports'):
            pass
    daemon.quit()
    return out


# -- the images

IMAGES = {}


def image(what, extra=()):
    """Registers a maker; its name is the file's, its doc the README's line."""
    def register(make):
        name = make.__name__.strip('_').replace('_', '-') + '.qcow2'
        IMAGES[name] = (make, what, extra)
        return make
    return register


def busy(m, name, size, options, fine='512', coarse='64k'):
    """The common story: two bitmaps that saw different writes."""
    m.create(name, size, options)
    m.bitmap(name, 'since-start', '--add', '-g', coarse)
    m.io(name, 'write -P 1 0 16k', 'write -P 2 1M 8k', 'write -P 3 1200k 512')
    m.bitmap(name, 'since-then', '--add', '-g', fine)
    m.io(name, 'write -P 4 1028k 3k', 'write -z 640k 64k', 'discard 1M 4k')


@image('three bitmaps, three granularities; one is disabled (16 KiB clusters keep the file small)')
def three_bitmaps(m, name):
    m.create(name, '64M', 'cluster_size=16k')
    m.bitmap(name, 'daily', '--add', '-g', '64k')
    m.io(name, 'write -P 1 0 64k', 'write -z 10M 192k')
    m.bitmap(name, 'weekly', '--add', '-g', '32k')
    m.io(name, 'write -P 3 20000k 60k', 'write -z 30M 1M')
    m.bitmap(name, 'frozen', '--add', '-g', '1M')
    m.io(name, 'write -z 63M 1M')
    m.bitmap(name, 'frozen', '--disable')
    m.io(name, 'discard 40M 64k')


@image('v2: no bitmaps are possible; one internal snapshot')
def v2(m, name):
    m.create(name, '4M', 'compat=0.10,cluster_size=4k')
    m.io(name, 'write -P 1 0 16k')
    m.run('qemu-img', 'snapshot', '-c', 'before', name)
    m.io(name, 'write -P 2 8k 8k')


@image('v3 with nothing in it')
def empty(m, name):
    m.create(name, '1M', 'cluster_size=4k')


for bits in (1, 2, 4, 8, 32, 64):
    def make(m, name, bits=bits):
        busy(m, name, '4M', 'cluster_size=4k,refcount_bits=%d' % bits)
    make.__name__ = 'refcount_%d' % bits
    image('refcounts of %d bit%s' % (bits, '' if bits == 1 else 's'))(make)


for size, disk in (('512', '2M'), ('1k', '4M'), ('8k', '8M')):
    def make(m, name, size=size, disk=disk):
        busy(m, name, disk, 'cluster_size=' + size)
    make.__name__ = 'cluster_' + size
    image('clusters of %s' % size)(make)


@image('extended L2 entries (32 subclusters of 512 bytes)')
def extended_l2(m, name):
    busy(m, name, '4M', 'cluster_size=16k,extended_l2=on', coarse='32k')


@image('zstd; some clusters are compressed')
def zstd(m, name):
    m.create(name, '4M', 'cluster_size=4k,compression_type=zstd')
    m.bitmap(name, 'b', '--add', '-g', '4k')
    m.io(name, 'write -c -P 1 0 16k', 'write -c -P 2 2M 4k', 'write -P 3 3M 6k')


@image('zlib; some clusters are compressed, two of them share a host cluster')
def zlib_compressed(m, name):
    m.create(name, '4M', 'cluster_size=4k')
    m.bitmap(name, 'b', '--add', '-g', '4k')
    m.io(name, 'write -c -P 1 0 16k', 'write -c -P 2 2M 4k', 'write -P 3 3M 6k')


@image('external raw data file', extra=['data-file.raw'])
def data_file(m, name):
    m.create(name, '256k',
             'cluster_size=4k,data_file=data-file.raw,data_file_raw=on')
    m.bitmap(name, 'b', '--add', '-g', '4k')
    m.io(name, 'write -P 1 0 16k', 'write -P 2 200k 10k')


@image('two internal snapshots, bitmaps beside them')
def snapshots(m, name):
    m.create(name, '4M', 'cluster_size=4k')
    m.bitmap(name, 'b', '--add', '-g', '4k')
    m.io(name, 'write -P 1 0 16k')
    m.run('qemu-img', 'snapshot', '-c', 'one', name)
    m.io(name, 'write -P 2 4k 16k')
    m.run('qemu-img', 'snapshot', '-c', 'two', name)
    m.io(name, 'write -P 3 64k 4k')


@image('the bottom of a chain of three; its bitmap saw the first writes')
def chain_base(m, name):
    m.create(name, '4M', 'cluster_size=4k')
    m.bitmap(name, 'b', '--add', '-g', '4k')
    m.io(name, 'write -P 1 0 12k')


@image('the middle of the chain: a bitmap of the same name, other granularity')
def chain_middle(m, name):
    m.run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k',
          '-b', 'chain-base.qcow2', '-F', 'qcow2', name)
    m.bitmap(name, 'b', '--add', '-g', '8k')
    m.io(name, 'write -P 2 8k 16k')


@image('the top of the chain; it has no bitmap')
def chain_top(m, name):
    m.run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k',
          '-b', 'chain-middle.qcow2', '-F', 'qcow2', name)
    m.io(name, 'write -P 3 1M 4k')


@image('LUKS inside (AES-128-CBC, so that the header stays small); passphrase `sesame`')
def luks(m, name):
    m.run('qemu-img', 'create', '-q', '-f', 'qcow2', '--object',
          'secret,id=s,data=sesame', '-o',
          'cluster_size=4k,encrypt.format=luks,encrypt.key-secret=s,'
          'encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,'
          'encrypt.ivgen-alg=plain64,encrypt.iter-time=1', name, '1M')
    encrypted_content(m, name)


@image('the old AES; passphrase `sesame`')
def aes(m, name):
    m.run('qemu-img', 'create', '-q', '-f', 'qcow2', '--object',
          'secret,id=s,data=sesame', '-o',
          'cluster_size=4k,encrypt.format=aes,encrypt.key-secret=s', name, '1M')
    encrypted_content(m, name)


def encrypted_content(m, name):
    m.run('qemu-io', '--object', 'secret,id=s,data=sesame', '--image-opts',
          '-c', 'write -P 0x11 0 6k', '-c', 'write -P 0x22 500k 1000',
          '-c', 'write -z 504k 4k', '-c', 'write -P 0x33 1023k 1k',
          f'driver=qcow2,encrypt.key-secret=s,file.filename={name}')


@image('a storage daemon was killed with the image open: both bitmaps are in use')
def in_use(m, name):
    busy(m, name, '4M', 'cluster_size=4k')
    m.bitmap(name, 'since-then', '--disable')
    m.commands.append('# opened read-write by qemu-storage-daemon, then SIGKILL')
    daemon = Daemon(m.folder)
    daemon.open(name)
    daemon.kill()


@image('a program that knows no bitmaps wrote to it and cleared the autoclear bits')
def autoclear_cleared(m, name):
    busy(m, name, '4M', 'cluster_size=4k')
    m.patch(name, 88, bytes(8), 'autoclear_features cleared')


@image('a bitmap that is all dirty, one that is all clean')
def all_ones(m, name):
    m.create(name, '2M', 'cluster_size=512')
    m.bitmap(name, 'full', '--add', '-g', '512')
    m.bitmap(name, 'clean', '--add', '-g', '512')
    m.bitmap(name, 'clean', '--disable')
    m.io(name, 'write -z 0 2M')


@image('disk sizes that are no multiple of cluster or granularity: the last bit stands for less')
def odd_size(m, name):
    m.create(name, '1000448', 'cluster_size=1k')
    m.bitmap(name, 'coarse', '--add', '-g', '128k')
    m.bitmap(name, 'fine', '--add', '-g', '512')
    m.io(name, 'write -P 1 999936 512', 'write -P 2 5k 5k')


@image('many bitmaps; names of one byte, of 255 bytes, and not ASCII')
def names(m, name):
    m.create(name, '1M', 'cluster_size=1k')
    for n in ['x', 'y' * 255, 'täglich', 'with space', '日次', 'a/b', '-']:
        m.run('qemu-img', 'bitmap', '--add', '-g', '64k', '--', name, n)
    m.io(name, 'write -P 1 128k 1k')
    m.run('qemu-img', 'bitmap', '--disable', '--', name, '日次')


@image('lazy refcounts, and the dirty bit set by a kill')
def lazy_dirty(m, name):
    m.create(name, '1M', 'cluster_size=4k,lazy_refcounts=on')
    m.commands.append("# qemu-io -c 'write -P 1 0 16k' -c abort")
    subprocess.run(['qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 16k', '-c',
                    'abort', name], cwd=m.folder, capture_output=True)


@image('the corrupt bit is set')
def corrupt_bit(m, name):
    busy(m, name, '4M', 'cluster_size=4k')
    m.patch(name, 79, b'\2', 'incompatible_features: corrupt')


@image('two leaked clusters: refcounts without a reference')
def leaks(m, name):
    m.create(name, '1M', 'cluster_size=4k')
    m.io(name, 'write -P 1 0 16k')
    with open(os.path.join(m.folder, name), 'rb') as f:
        head = f.read(0x10000)
    table = int.from_bytes(head[48:56], 'big')
    block = int.from_bytes(head[table:table + 8], 'big')
    m.run('truncate', '-s', '100k', name)
    m.patch(name, block + 2 * 20, b'\0\1\0\1', 'refcounts of clusters 20 and 21')


def record(m, name, what, extra):
    info = json.loads(m.run('qemu-img', 'info', '-U', '-f', 'qcow2',
                            '--output=json', name, log=False))
    check = subprocess.run(['qemu-img', 'check', '-f', 'qcow2', name],
                           cwd=m.folder, capture_output=True, text=True) \
        if not info.get('encrypted') else None
    return {
        'image': name,
        'what': what,
        'made-with': m.run('qemu-img', '--version', log=False).split('\n')[0],
        'commands': m.commands,
        'other-files': list(extra),
        'virtual-size': info['virtual-size'],
        'cluster-size': info['cluster-size'],
        'check-exit-code': check.returncode if check else None,
        'listed': [{'name': b['name'], 'granularity': b['granularity'],
                    'flags': sorted(b['flags'])}
                   for b in info['format-specific']['data'].get('bitmaps', [])],
        'bitmaps': truth(m.folder, name) if not info.get('encrypted') else [],
    }


def readme_table(records):
    lines = ['| image | what | bitmaps |', '|---|---|---|']
    for r in records:
        maps = ', '.join('%s (%s, %d)' % (
            b['name'] if len(b['name']) < 20 else b['name'][:3] + '…',
            b['state'], b['granularity']) for b in r['bitmaps'])
        if r['listed'] and not r['bitmaps']:
            maps = 'void: ' + ', '.join(b['name'] for b in r['listed'])
        lines.append('| `%s` | %s | %s |' % (r['image'], r['what'], maps))
    return '\n'.join(lines)


def write_readme():
    records = []
    for name in IMAGES:
        with open(os.path.join(OUT, name.replace('.qcow2', '.json'))) as f:
            records.append(json.load(f))
    path = os.path.join(HERE, 'README.md')
    with open(path) as f:
        text = f.read()
    begin, end = '<!-- made by make.py -->', '<!-- end -->'
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    with open(path, 'w') as f:
        f.write('%s%s\nAll by %s.\n\n%s\n%s%s' % (
            head, begin, records[0]['made-with'], readme_table(records),
            end, tail))


def dump(value):
    """JSON with one bitmap, one command and one range pair to a line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return re.sub(r'\[\s+(\d+),\s+(\d+)\s+\]', r'[\1, \2]', text) + '\n'


def main():
    wanted = sys.argv[1:] or list(IMAGES)
    os.makedirs(OUT, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, what, extra) in IMAGES.items():
            # The chain is made in order, and needs the images below.
            if name not in wanted and not name.startswith('chain-'):
                continue
            m = Maker(folder)
            make(m, name)
            written = record(m, name, what, extra)
            if name not in wanted:
                continue
            for file in [name, *extra]:
                shutil.copyfile(os.path.join(folder, file),
                                os.path.join(OUT, file))
            with open(os.path.join(OUT, name.replace('.qcow2', '.json')),
                      'w') as f:
                f.write(dump(written))
            print(name, os.path.getsize(os.path.join(OUT, name)))
    write_readme()


if __name__ == '__main__':
    main()
