"""A real QEMU that migrates into a file, and the record of it: what
streams.py makes its streams with."""

import atexit
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

from make import Maker

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
        # Whatever goes wrong, it does not stay behind.
        atexit.register(self.proc.kill)
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
