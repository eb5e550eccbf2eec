#!/usr/bin/env python3
"""Makes testdata/stream/ with a real QEMU: migration streams, the images they
are made of, and one record for each.

    testdata/streams.py            remakes everything, README.md's table included
    testdata/streams.py NAME...    remakes some streams

Needs qemu-system-x86_64 10.0, qemu-img, qemu-io and nbdinfo (libnbd); standard
library only.  For those called 3x-..., $QEMU_7_2 must be the path of a
qemu-system-x86_64 7.2 (they are left as they are without it).  The record
holds the commands and the truth about the bitmaps: SHA-256 as QEMU tells it,
and dirty ranges as nbdinfo sees them over NBD before the migration.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

from make import HERE, Maker, dump

OUT = os.path.join(HERE, 'stream')
BINARY = 'qemu-system-x86_64'
OLD = os.environ.get('QEMU_7_2')

# Keeps a guest busy for ever: `inc byte [bx]` in each of 16 pages of RAM.
# cli; mov ax,1000h; mov ds,ax; xor bx,bx; L: inc byte [bx]; add bx,1000h;
# xor cx,cx; W: loop W; jmp L
BUSY = bytes.fromhex('fa b80010 8ed8 31db fe07 81c30010 31c9 e2fe ebf4')
# Stops it at once: cli; hlt
HALT = bytes.fromhex('fa f4')


def firmware(code):
    """64 KiB that a PC runs from F000:0000 in place of a BIOS."""
    image = bytearray(65536)
    image[:len(code)] = code
    image[0xfff0:0xfff5] = b'\xea\0\0\0\xf0'
    return bytes(image)


class Qemu:
    """A qemu-system-x86_64 over QMP on a socket that it inherits."""

    def __init__(self, folder, args, binary=BINARY):
        ours, theirs = socket.socketpair()
        self.messages = open(os.path.join(folder, 'messages'), 'w+')
        fd = theirs.fileno()
        self.proc = subprocess.Popen(
            [binary, '-nodefaults', '-display', 'none', *args,
             '-chardev', 'socket,id=q,fd=%d' % fd, '-mon', 'q,mode=control'],
            cwd=folder, pass_fds=[fd], stdin=subprocess.DEVNULL,
            stdout=self.messages, stderr=self.messages)
        theirs.close()
        ours.settimeout(60)
        self.monitor = ours.makefile('rw')
        self.monitor.readline()
        self.cmd('qmp_capabilities')

    def cmd(self, name, arguments=None, /, **more):
        arguments = dict(arguments or {}, **{
            k.replace('_', '-'): v for k, v in more.items()})
        try:
            print(json.dumps({'execute': name, 'arguments': arguments}),
                  file=self.monitor, flush=True)
            for line in self.monitor:
                reply = json.loads(line)
                if 'return' in reply:
                    return reply['return']
                if 'error' in reply:
                    sys.exit('%s: %s' % (name, reply['error']['desc']))
        except OSError:
            pass
        self.messages.seek(0)
        sys.exit('%s: QEMU went away: %s' % (name, self.messages.read()))

    def io(self, node, command):
        said = self.cmd('human-monitor-command',
                        {'command-line': 'qemu-io %s "%s"' % (node, command)})
        if said.strip():
            sys.exit('qemu-io %s %s: %s' % (node, command, said))

    def bitmaps(self):
        """(node, bitmap) for each named one, as QEMU lists them."""
        for node in self.cmd('query-named-block-nodes', flat=True):
            for b in node.get('dirty-bitmaps', []):
                if 'name' in b:
                    yield node['node-name'], b

    def sha256(self, node, name):
        return self.cmd('x-debug-block-dirty-bitmap-sha256', node=node,
                        name=name)['sha256']

    def ended(self):
        while True:
            info = self.cmd('query-migrate')
            status = info.get('status', 'none')
            if status == 'completed':
                return info
            if status in ('failed', 'cancelled'):
                sys.exit('migration %s: %s' % (status, info.get('error-desc')))
            time.sleep(0.02)

    def quit(self):
        self.cmd('quit')
        self.proc.wait(60)


def nbd_ranges(sock, name):
    """The dirty ranges of a bitmap of the export `e`."""
    extents = json.loads(subprocess.run(
        ['nbdinfo', '--json', '--map=qemu:dirty-bitmap:' + name,
         'nbd+unix:///e?socket=' + sock],
        check=True, capture_output=True, text=True).stdout)
    ranges = []
    for e in extents:
        if not e['type'] & 1:
            continue
        if ranges and sum(ranges[-1]) == e['offset']:
            ranges[-1][1] += e['length']
        else:
            ranges.append([e['offset'], e['length']])
    return ranges


def digest(size, granularity, ranges):
    """SHA-256 of the words of a bitmap with these ranges dirty."""
    granules = -(-size // granularity)
    bits = 0
    for start, length in ranges:
        first, last = start // granularity, (start + length - 1) // granularity
        bits |= ((1 << (last - first + 1)) - 1) << first
    words = max(1, -(-granules // 64))
    return hashlib.sha256(bits.to_bytes(words * 8, 'little')).hexdigest()


def merged(ranges, size, granularity):
    """Ranges made of whole granules, in order, without overlap."""
    out = []
    for start, length in sorted(ranges):
        end = min(-(-(start + length) // granularity) * granularity, size)
        start = start // granularity * granularity
        if out and start <= sum(out[-1]):
            out[-1][1] = max(sum(out[-1]), end) - out[-1][0]
        else:
            out.append([start, end - start])
    return out


class Relay:
    """A Unix socket that keeps what the source sends, one file for each
    connection, and passes it on to a destination where there is one."""

    def __init__(self, folder, out, onward=None):
        self.path = os.path.join(folder, 'relay')
        self.out, self.onward, self.answers = out, onward, b''
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(8)
        self.count = 0
        self.threads = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            conn, _ = self.listener.accept()
            out = self.out if self.count == 0 else '%s.%d' % (self.out,
                                                              self.count)
            self.count += 1
            there = None
            if self.onward:
                there = socket.socket(socket.AF_UNIX)
                there.connect(self.onward)
                self.spawn(self.back, there, conn)
            self.spawn(self.forth, conn, there, out)

    def spawn(self, run, *args):
        thread = threading.Thread(target=run, args=args, daemon=True)
        thread.start()
        self.threads.append(thread)

    def forth(self, conn, there, out):
        with open(out, 'wb') as f:
            while data := conn.recv(1 << 16):
                f.write(data)
                if there:
                    there.sendall(data)
        if there:
            there.shutdown(socket.SHUT_WR)

    def back(self, there, conn):
        while data := there.recv(1 << 16):
            self.answers += data
            conn.sendall(data)

    def join(self):
        for thread in self.threads:
            thread.join(10)


class Capture:
    """One migration of a real QEMU, and its record."""

    def __init__(self, folder, name):
        self.m = Maker(folder)
        self.folder, self.name = folder, name
        self.nodes = []             # (node, image file)
        self.record = {'description': '', 'stream': name + '.stream'}
        self.caps = ['dirty-bitmaps']
        self.machine, self.args, self.mapping = 'none', [], None
        self.binary, self.drives = BINARY, False

    # -- what is there before QEMU starts

    def node(self, node, size, options='cluster_size=4k'):
        image = '%s.%s.qcow2' % (self.name, node)
        self.m.create(image, str(size), options)
        self.nodes.append((node, image, size))
        return image

    def bitmap(self, image, name, granularity, *writes, disabled=False):
        """Adds a persistent bitmap; earlier ones see the writes as well."""
        self.m.bitmap(image, name, '--add', '-g', str(granularity))
        if writes:
            self.m.io(image, *writes)
        if disabled:
            self.m.bitmap(image, name, '--disable')

    def pc(self, machine='pc', code=HALT, *args):
        """A PC with 1 MiB of RAM and our own firmware, the disk on IDE."""
        with open(os.path.join(self.folder, 'firmware'), 'wb') as f:
            f.write(firmware(code))
        self.machine = machine
        self.args = ['-accel', 'tcg', '-m', '1M', '-bios', 'firmware',
                     '-device', 'ide-hd,drive=%s,bus=ide.0,share-rw=on'
                     % self.nodes[0][0], *args]

    # -- QEMU

    def start(self, transient=(), writes=()):
        """Starts QEMU paused on copies of the images, adds bitmaps that are
        not persistent, writes, and notes the truth."""
        args = ['-machine', self.machine, '-S']
        shown = [BINARY, '-nodefaults -display none -S -machine', self.machine]
        for node, image, _ in self.nodes:
            shutil.copyfile(os.path.join(self.folder, image),
                            os.path.join(self.folder, 'used-' + image))
            disk = ['-blockdev', 'qcow2,node-name=%s,file.driver=file,'
                    'file.filename=used-%s' % (node, image)]
            if self.drives:
                disk = ['-drive', 'if=none,id=drive-%s,node-name=%s,'
                        'format=qcow2,file=used-%s' % (node, node, image)]
            args += disk
            shown += disk
        self.note(' '.join(shown + self.args).replace('used-', ''))
        self.qemu = q = Qemu(self.folder, args + self.args, self.binary)
        for node, name, granularity, disabled in transient:
            self.qmp('block-dirty-bitmap-add', node=node, name=name,
                     granularity=granularity, disabled=disabled,
                     persistent=False)
        for node, command in writes:
            self.io(node, command)
        self.truth()

    def note(self, command):
        self.m.commands.append(command)

    def qmp(self, name, arguments=None, /, **more):
        arguments = dict(arguments or {}, **{
            k.replace('_', '-'): v for k, v in more.items()})
        self.note('qmp: %s %s' % (name, json.dumps(arguments)))
        return self.qemu.cmd(name, arguments)

    def io(self, node, command):
        self.note('hmp: qemu-io %s "%s"' % (node, command))
        self.qemu.io(node, command)

    def truth(self):
        q = self.qemu
        sock = os.path.join(self.folder, 'nbd')
        q.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': sock}})
        out = self.record['bitmaps'] = []
        for node, b in list(q.bitmaps()):
            name = b['name']
            q.cmd('block-export-add', type='nbd', id='x', node_name=node,
                  name='e', bitmaps=[name], writable=True)
            ranges = nbd_ranges(sock, name)
            q.cmd('block-export-del', id='x', mode='hard')
            while q.cmd('query-block-exports'):
                pass
            out.append({
                'node': node, 'name': name, 'granularity': b['granularity'],
                'enabled': b['recording'], 'persistent': b['persistent'],
                'sha256': q.sha256(node, name),
                'dirty-bytes': sum(n for _, n in ranges), 'count': b['count'],
                'dirty-from': 'nbd', 'dirty': ranges})
            self.alias(out[-1])
        q.cmd('nbd-server-stop')

    def alias(self, entry):
        """How the stream names the bitmap, by the mapping in force."""
        node = entry['node']
        names = ('drive-' + node if self.drives else node, entry['name'],
                 entry['persistent'])
        if self.mapping is not None:
            names = None
            for n in self.mapping:
                for b in n['bitmaps']:
                    if (n['node-name'], b['name']) == (entry['node'],
                                                       entry['name']):
                        names = (n['alias'], b['alias'],
                                 b.get('transform', {}).get(
                                     'persistent', entry['persistent']))
        entry['migrated'] = names is not None
        if names:
            (entry['node-alias'], entry['bitmap-alias'],
             entry['stream-persistent']) = names

    def written(self, node, start, length):
        """Adds a write during the migration to the truth of what records."""
        sizes = {n: size for n, _, size in self.nodes}
        for b in self.record['bitmaps']:
            if b['node'] != node or not b['enabled']:
                continue
            b['dirty'] = merged(b['dirty'] + [[start, length]], sizes[node],
                                b['granularity'])
            b['dirty-bytes'] = b['count'] = sum(n for _, n in b['dirty'])
            b['sha256'] = digest(sizes[node], b['granularity'], b['dirty'])
            b['dirty-from'] = 'nbd and the writes since, sha256 by qemu'

    def prepare(self, **parameters):
        """Capabilities, mapping and a bandwidth that keeps streams short: a
        QEMU with nothing to send writes an empty PART after the other."""
        self.qmp('migrate-set-capabilities', capabilities=[
            {'capability': c, 'state': True} for c in self.caps])
        enough = {'avail-switchover-bandwidth': 1 << 40}
        if self.binary != BINARY:
            enough = {'downtime-limit': 2000000}
        parameters = {'max-bandwidth': 10, **enough, **parameters}
        if self.mapping is not None:
            parameters['block-bitmap-mapping'] = self.mapping
        self.qmp('migrate-set-parameters', parameters)

    def migrate(self, uri='file', **more):
        self.qmp('migrate', {'uri': uri if ':' in uri else
                             'file:%s.stream' % self.name, **more})

    def finish(self):
        """Waits for the end; what was migrated must still have its digest."""
        self.qemu.ended()
        for b in self.record['bitmaps']:
            if b['migrated'] and b['sha256'] != self.qemu.sha256(b['node'],
                                                                 b['name']):
                sys.exit('%s/%s has another digest' % (b['node'], b['name']))
        self.qemu.quit()

    def simply(self, **parameters):
        self.prepare(**parameters)
        self.migrate()
        self.finish()

    def done(self, what):
        path = os.path.join(self.folder, self.name + '.stream')
        version = subprocess.run([self.binary, '--version'], capture_output=True,
                                 text=True, check=True).stdout.split('\n')[0]
        r = self.record
        r.update({
            'description': what, 'stream-size': os.path.getsize(path),
            'made-with': version, 'machine': self.machine,
            'capabilities': self.caps, 'block-bitmap-mapping': self.mapping,
            'commands': [c.replace(self.folder + '/', '')
                         for c in self.m.commands],
            'images': [{'node': n, 'file': f, 'virtual-size': size}
                       for n, f, size in self.nodes]})
        r['bitmaps'] = r.pop('bitmaps')
        return [r['stream'], *(f for _, f, _ in self.nodes)]


# -- the streams

STREAMS = {}


def stream(name, what):
    def register(make):
        STREAMS[name] = (make, what)
        return make
    return register


K, M = 1024, 1024 * 1024


def one(c, size=M):
    """The image of the simplest captures: 128 KiB and 512 KiB are dirty."""
    image = c.node('n0', size)
    c.bitmap(image, 'bm0', 64 * K, 'write -z 128k 64k', 'write -P 2 512k 1k')


@stream('01-single', 'one persistent enabled bitmap, 1 MiB, 64 KiB')
def single(c):
    one(c)
    c.start()
    c.simply()


@stream('02-multi-bitmap', 'four bitmaps of one node, all combinations of '
        'enabled and persistent, granularities 512 to 1 MiB')
def multi_bitmap(c):
    image = c.node('n0', 10 * M)
    c.bitmap(image, 'p-on', 512, 'write -P 1 0 512', 'write -z 1M 3M')
    c.bitmap(image, 'p-off', 4 * K, 'write -z 9M 64k', disabled=True)
    c.start(transient=[('n0', 't-on', 64 * K, False),
                       ('n0', 't-off', M, True)],
            writes=[('n0', 'write -P 3 5M 4k')])
    c.simply()


@stream('03-multi-node', 'three nodes, one of them without bitmaps')
def multi_node(c):
    first = c.node('disk0', M)
    c.node('disk1', M)
    third = c.node('disk2', 3 * M)
    c.bitmap(first, 'daily', 64 * K, 'write -P 1 0 4k')
    c.bitmap(first, 'weekly', 4 * K, 'write -P 2 700k 4k')
    c.bitmap(third, 'daily', 64 * K, 'write -z 2M 128k')
    c.start()
    c.simply()


@stream('04-aliases', 'block-bitmap-mapping: aliases, transform.persistent '
        'both ways, one bitmap and one node left out')
def aliases(c):
    image = c.node('n0', M)
    other = c.node('n1', M)
    c.bitmap(image, 'bm0', 64 * K, 'write -P 1 0 1k')
    c.bitmap(image, 'bm1', 64 * K, 'write -P 2 512k 1k')
    c.bitmap(image, 'left-out', 64 * K)
    c.bitmap(other, 'bm0', 64 * K)
    c.mapping = [
        {'node-name': 'n0', 'alias': 'drive-alias-0', 'bitmaps': [
            {'name': 'bm0', 'alias': 'bitmap alias 0'},
            {'name': 'bm1', 'alias': 'bm1-transient',
             'transform': {'persistent': False}},
            {'name': 'tmp', 'alias': 'tmp-persistent',
             'transform': {'persistent': True}}]},
        {'node-name': 'nowhere', 'alias': 'unused', 'bitmaps': []}]
    c.start(transient=[('n0', 'tmp', 4 * K, False)],
            writes=[('n0', 'write -P 3 256k 4k')])
    c.simply()


@stream('05-disabled', 'a disabled bitmap: later writes are not in it')
def disabled(c):
    image = c.node('n0', M)
    c.bitmap(image, 'bm0', 64 * K, 'write -z 0 128k', disabled=True)
    c.start(writes=[('n0', 'write -P 2 900k 4k')])
    c.simply()


@stream('06-transient', 'a bitmap that is not persistent')
def transient(c):
    c.node('n0', M)
    c.start(transient=[('n0', 'bm0', 64 * K, False)],
            writes=[('n0', 'write -P 1 100k 64k')])
    c.simply()


@stream('07-empty', 'a bitmap without any dirty bit: one ZEROES chunk')
def empty(c):
    c.bitmap(c.node('n0', M), 'bm0', 64 * K)
    c.start()
    c.simply()


@stream('08-zero-size', 'a disk of size 0: one ZEROES chunk of no sectors')
def zero_size(c):
    c.node('n0', 0)
    c.start(transient=[('n0', 'bm0', 64 * K, False)])
    c.simply()


@stream('09-coarse', '3 TiB, granularity 128 MiB: as much as QEMU can send')
def coarse(c):
    image = c.node('n0', 3 << 40, 'cluster_size=64k')
    c.bitmap(image, 'bm0', 128 * M, 'write -z 2T 1M', 'write -z 3145727M 1M')
    c.start()
    c.simply()


@stream('10-odd-size', '10 MiB + 512 with granularities 512, 4 KiB, 64 KiB')
def odd_size(c):
    image = c.node('n0', 10 * M + 512)
    c.bitmap(image, 'g512', 512)
    c.bitmap(image, 'g4k', 4 * K)
    c.bitmap(image, 'g64k', 64 * K, 'write -P 1 262656 512', 'write -z 4M 1M',
             'write -P 2 10M 512')
    c.start()
    c.simply()


@stream('12-write-during', 'written to while the migration goes on')
def write_during(c):
    one(c)
    c.start()
    c.prepare(**{'avail-switchover-bandwidth': 1})
    c.qmp('cont')
    c.migrate()
    time.sleep(0.25)
    for start, length in ((0, 4 * K), (960 * K, 64 * K)):
        c.io('n0', 'write -P 9 %d %d' % (start, length))
        c.written('n0', start, length)
    c.qmp('migrate-set-parameters', {'avail-switchover-bandwidth': 1 << 40})
    c.finish()


@stream('14-pc-paused', 'pc, paused: RAM, devices and their description')
def pc_paused(c):
    one(c)
    c.pc()
    c.start()
    c.simply()


@stream('15-pc-running', 'pc, running: pages sent again, as XBZRLE differences')
def pc_running(c):
    one(c)
    c.caps.append('xbzrle')
    c.pc('pc', BUSY)
    c.start()
    c.prepare(**{'max-bandwidth': 400 * K, 'avail-switchover-bandwidth': 50000})
    c.qmp('cont')
    c.io('n0', 'write -P 9 0 4k')
    c.written('n0', 0, 4 * K)
    c.migrate()
    c.finish()


@stream('16-no-bitmaps', 'capability on, no bitmap: a START section that only '
        'says EOS, no END section')
def no_bitmaps(c):
    c.node('n0', M)
    c.start()
    c.simply()


@stream('17-q35-paused', 'q35, paused; a UUID in the configuration')
def q35_paused(c):
    one(c)
    c.pc('q35', HALT, '-uuid', '00112233-4455-6677-8899-aabbccddeeff')
    c.caps.append('validate-uuid')
    c.start()
    c.simply()


@stream('18-mapped-ram', 'capabilities in the configuration: a reader of '
        'streams must refuse this one')
def mapped_ram(c):
    one(c)
    c.caps += ['mapped-ram', 'x-ignore-shared']
    c.start()
    c.simply()


@stream('19-multifd', 'the first connection of several: a reader must refuse it')
def multifd(c):
    one(c)
    c.caps.append('multifd')
    c.start()
    relay = Relay(c.folder, os.path.join(c.folder, c.name + '.stream'))
    c.prepare()
    c.migrate('unix:' + relay.path)
    c.finish()
    relay.join()


def postcopy(c):
    """Migrates to a real destination, so that the return path answers."""
    for node, image, size in c.nodes:
        c.m.run('qemu-img', 'create', '-q', '-f', 'qcow2', 'dest-' + image,
                str(size), log=False)
    onward = os.path.join(c.folder, 'onward')
    args = ['-machine', c.machine, '-S', '-incoming', 'defer', *c.args]
    for node, image, _ in c.nodes:
        args += ['-blockdev', json.dumps({
            'driver': 'qcow2', 'node-name': node,
            'file': {'driver': 'file', 'filename': 'dest-' + image}})]
    destination = Qemu(c.folder, args)
    destination.cmd('migrate-set-capabilities', capabilities=[
        {'capability': cap, 'state': True} for cap in c.caps])
    destination.cmd('migrate-incoming', uri='unix:' + onward)
    relay = Relay(c.folder, os.path.join(c.folder, c.name + '.stream'), onward)
    c.prepare(**{'avail-switchover-bandwidth': 1})
    c.migrate('unix:' + relay.path)
    c.qmp('migrate-start-postcopy')
    c.finish()
    destination.ended()
    for b in c.record['bitmaps']:
        if destination.sha256(b['node'], b['name']) != b['sha256']:
            sys.exit('postcopy: the destination has another digest')
    destination.quit()
    relay.join()
    c.record['return-path'] = relay.answers.hex()


@stream('20-postcopy', 'postcopy of two bitmaps with return path')
def postcopy_of_two(c):
    image = c.node('n0', 10 * M)
    c.bitmap(image, 'a', 512, 'write -z 1M 3M', disabled=True)
    c.bitmap(image, 'b', 64 * K, 'write -z 9M 64k')
    c.caps.append('return-path')
    c.start()
    postcopy(c)


@stream('30-old-single', 'QEMU 7.2: no SWITCHOVER_START, shorter description')
def old_single(c):
    c.binary = OLD
    one(c)
    c.start()
    relay = Relay(c.folder, os.path.join(c.folder, c.name + '.stream'))
    c.prepare()
    c.migrate('unix:' + relay.path)
    c.finish()
    relay.join()


@stream('31-old-block', 'QEMU 7.2: the disk itself in a `block` section, its '
        'first MiB zero, the last block a whole MiB though the disk ends within')
def old_block(c):
    c.binary, c.drives = OLD, True
    image = c.node('n0', 3 * M // 2)
    c.bitmap(image, 'bm0', 64 * K, 'write -P 3 1M 4k', 'write -P 4 1535k 1k')
    c.caps.append('zero-blocks')
    c.start()
    relay = Relay(c.folder, os.path.join(c.folder, c.name + '.stream'))
    c.prepare(**{'max-bandwidth': 65536, 'downtime-limit': 10})
    c.migrate('unix:' + relay.path, blk=True)
    c.finish()
    relay.join()


@stream('minimal', 'the smallest that QEMU 7.2 and 10.0 load, on any machine '
        'type; put together by hand')
def minimal(c):
    """An empty machine name, one FULL section, no device, no description."""
    ranges = [[128 * K, 64 * K], [512 * K, 64 * K]]
    parts = [b'QEVM', b'\0\0\0\3',                         # version 3
             b'\7', bytes(4),                              # CONFIGURATION ""
             b'\4', b'\0\0\0\1', b'\x0cdirty-bitmap',     # FULL, id 1
             b'\0\0\0\0', b'\0\0\0\1',                    # instance, version
             b'\x1c', b'\2n0', b'\3bm0', b'\0\1\0\0', b'\3',
             b'\x40', bytes(8), b'\0\0\x08\0', bytes(7) + b'\x20',
             b'\4\1' + bytes(30), b'\x20', b'\1',
             b'\x7e', b'\0\0\0\1', b'\0']                 # footer, EOF
    with open(os.path.join(c.folder, 'minimal.stream'), 'wb') as f:
        f.write(b''.join(parts))
    c.machine = ''
    c.record['bitmaps'] = [{
        'node': 'n0', 'name': 'bm0', 'granularity': 64 * K, 'enabled': True,
        'persistent': True, 'sha256': digest(M, 64 * K, ranges),
        'dirty-bytes': 128 * K, 'count': 128 * K, 'dirty-from': 'the maker',
        'dirty': ranges}]
    c.alias(c.record['bitmaps'][0])


def write_readme(records):
    lines = ['| stream | what | bytes | bitmaps |', '|---|---|---|---|']
    for r in records:
        maps = ', '.join('%s/%s' % (b['node-alias'], b['bitmap-alias'])
                         for b in r['bitmaps'] if b['migrated'])
        lines.append('| `%s` | %s | %d | %s |' % (
            r['stream'], r['description'], r['stream-size'], maps))
    path = os.path.join(HERE, 'README.md')
    with open(path) as f:
        text = f.read()
    begin, end = '<!-- made by streams.py -->', '<!-- end -->'
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    with open(path, 'w') as f:
        f.write('%s%s\n%s\n%s%s' % (head, begin, '\n'.join(lines), end, tail))


def main():
    wanted = sys.argv[1:] or [name for name in STREAMS
                              if OLD or not name.startswith('3')]
    os.makedirs(OUT, exist_ok=True)
    for name in wanted:
        make, what = STREAMS[name]
        with tempfile.TemporaryDirectory() as folder:
            c = Capture(folder, name)
            make(c)
            for file in c.done(what):
                shutil.copyfile(os.path.join(folder, file),
                                os.path.join(OUT, file))
            with open(os.path.join(OUT, name + '.json'), 'w') as f:
                f.write(dump(c.record))
            print(name, c.record['stream-size'])
    records = []
    for file in sorted(os.listdir(OUT)):
        if file.endswith('.json'):
            with open(os.path.join(OUT, file)) as f:
                records.append(json.load(f))
    write_readme(records)


if __name__ == '__main__':
    main()
