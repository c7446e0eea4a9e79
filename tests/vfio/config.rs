//! Sizes and offsets of transfers, and which configuration writes revoke (sections n, o).

use crate::devices::*;
use crate::suite::Suite;
use crate::support::raw::{load, store};
use crate::syscalls::faults;
use revocable_mmio::MapOptions;
use revocable_mmio::pci::{BufferFault, PciDevice, Sink, Source, Space};

/// A caller's buffer of `len` bytes of which only the first `good` are there.
struct Bad {
    len: usize,
    good: usize,
}

impl Bad {
    fn check(&self, end: usize) -> Result<(), BufferFault> {
        if end > self.good { Err("not mapped".into()) } else { Ok(()) }
    }
}

impl Sink for Bad {
    fn len(&self) -> usize {
        self.len
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), BufferFault> {
        self.check(at + bytes.len())
    }
}

impl Source for Bad {
    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, at: usize, into: &mut [u8]) -> Result<(), BufferFault> {
        into.fill(0);
        self.check(at + into.len())
    }
}

pub(crate) fn sizes(s: &mut Suite) {
    s.section("n");
    let device = ivshmem(s);
    let size = BIG as u64;
    for len in [1, 2, 3, 4, 5, 7, 9, 15, 4097, 65536] {
        s.row(&format!("pread len {len} @0"), pread(&device, BAR2, 0, len));
    }
    for (len, at) in [(4, 1), (8, 1), (8, 2), (4, 3)] {
        s.row(&format!("pread len {len} @{at}"), pread(&device, BAR2, at, len));
    }
    // The recorded device had zeroes in bytes 0 to 7, and then an 8.
    pwrite(&device, BAR2, 8, &[8]);
    let mut eight = [0; 8];
    let read = rc(device.read(BAR2, 1, &mut eight[..]));
    let halves = [0, 4].map(|i| u32::from_le_bytes(eight[i..i + 4].try_into().expect("4 bytes")).swap_bytes());
    s.row("pread 8 @1: value", format!("{read} {:08x} {:08x}", halves[0], halves[1]));
    s.row("pread 8 @size-4 (crosses the end)", pread(&device, BAR2, size - 4, 8));
    s.row("pread 8 @size", pread(&device, BAR2, size, 8));
    s.row("pread 0 @size", pread(&device, BAR2, size, 0));
    s.row("pread 8 @size+4096", pread(&device, BAR2, size + 4096, 8));
    let writes = [
        pwrite(&device, BAR2, size - 4, &[0; 8]),
        pwrite(&device, BAR2, size, &[0; 8]),
        pwrite(&device, BAR2, size, &[]),
    ];
    s.row("pwrite 8 @size-4 / @size / 0 @size", writes.join(" / "));
    s.row("pread into NULL", rc(device.read(BAR2, 0, &mut Bad { len: 8, good: 0 })));
    let half = rc(device.read(BAR2, 0, &mut Bad { len: 8192, good: 4096 }));
    s.row("pread 8192 into a buffer with only the first page mapped", half);
    let absent = [1, 5].map(|bar| pread(&device, Space::Bar(bar), 0, 4));
    s.row("pread absent BAR1 / BAR5", absent.join(" / "));
    let info = device.info(Space::Bar(5));
    let flags = u32::from(info.read) | u32::from(info.write) << 1 | u32::from(info.map) << 2;
    s.row("region info absent BAR5: size flags", format!("{:#x} {flags:#x}", info.size));
    s.row("region info index 100", ok(Space::from_vfio_index(100)));
    s.row("pread at region index 20", ok(Space::from_vfio_index(20)));
    s.row("pread negative offset", pread(&device, BAR2, u64::MAX - 3, 4));
    let reads = [(254, 4), (256, 4), (0, 256), (0, 512)].map(|(at, len)| pread(&device, Space::Config, at, len));
    s.row("pread config @254 len 4 / @256 / whole 256 / 512", reads.join(" / "));
    s.more("pread config len 0 @256", pread(&device, Space::Config, 256, 0), "0");
    maps(s, &device);

    let nic = e1000e(s);
    let io = Space::Bar(2);
    s.row(
        "e1000e IO BAR2: pread 4 / mmap",
        format!("{} / {}", pread(&nic, io, 0, 4), ok(nic.map(io, MapOptions::new()))),
    );
    let mapped = ok(nic.map(BAR3, MapOptions::new().len(0x4000)));
    s.row("e1000e MSI-X BAR3: mmap 0x4000; pread @0 (table)", format!("{mapped}; {}", pread(&nic, BAR3, 0, 16)));
    let mut table = [0; 16];
    nic.write(BAR3, 0, &[7u8; 16][..]).expect("dropped");
    nic.read(BAR3, 0, &mut table[..]).expect("all-ones");
    s.more("the table part reads all-ones", format!("{}", table == [0xff; 16]), "true");
    off(&nic);
    let reads = [pread(&nic, BAR3, 0, 16), pread(&nic, io, 0, 4), pread(&nic, BAR0, 0, 4)];
    s.row("e1000e memory off: pread MSI-X table / IO BAR / MMIO BAR", reads.join(" / "));
    s.more("memory off: pread from the table's end on", pread(&nic, BAR3, 0x48, 16), "-1 EIO");
    pwrite(&nic, Space::Config, COMMAND, &0x0102u16.to_le_bytes());
    s.row(
        "e1000e IO bit off, memory on: IO BAR pread / MMIO pread",
        format!("{} / {}", pread(&nic, io, 0, 4), pread(&nic, BAR0, 0, 4)),
    );
    rom(s);
}

fn maps(s: &mut Suite, device: &PciDevice) {
    let options = MapOptions::new;
    s.row("mmap BAR2 size+4096", ok(device.map(BAR2, options().len(BIG + 4096))));
    s.row("mmap 4096 @size", ok(device.map(BAR2, options().offset(BIG).len(4096))));
    s.row("mmap 8192 @size-4096", ok(device.map(BAR2, options().offset(BIG - 4096).len(8192))));
    s.row("mmap len 0", ok(device.map(BAR2, options().len(0))));
    s.row("mmap config region", ok(device.map(Space::Config, options())));
    s.row("mmap ROM region", ok(device.map(Space::Rom, options())));
    s.row("mmap absent BAR5", ok(device.map(Space::Bar(5), options())));
    s.row("mmap BAR0 8192", ok(device.map(BAR0, options().len(8192))));
    s.more("mmap @0x800 (unaligned)", ok(device.map(BAR2, options().offset(0x800))), "-1 EINVAL");
}

/// The ROM, from the recording's summary, which has no rows about it.
fn rom(s: &mut Suite) {
    let device = ivshmem_builder(s).rom(&[0x55, 0xaa, 1, 2, 3]).build().expect("a device with a ROM");
    s.more("pread ROM", pread(&device, Space::Rom, 0, 16), "16");
    let mut bytes = [0; 8];
    device.read(Space::Rom, 0, &mut bytes[..]).expect("the ROM");
    s.more("ROM content, and what is left over", format!("{bytes:x?}"), "[55, aa, 1, 2, 3, ff, ff, ff]");
    s.more("pwrite ROM", pwrite(&device, Space::Rom, 0, &[0]), "-1 EINVAL");
    s.more("mmap ROM", ok(device.map(Space::Rom, MapOptions::new())), "-1 EINVAL");
    off(&device);
    s.more("pread ROM while off", pread(&device, Space::Rom, 0, 16), "-1 ENOMEM");
    s.more("pread ROM len 0 while off", pread(&device, Space::Rom, 0, 0), "0");
    on(&device);
    s.more("pread ROM, on again", pread(&device, Space::Rom, 0, 16), "16");
}

pub(crate) fn writes(s: &mut Suite) {
    s.section("o");
    let device = ivshmem(s);
    let mapping = map(&device, BAR2);
    let base = mapping.as_ptr();
    store(base, 8, 1).expect("enabled");
    // Makes one write to configuration space from the recording's initial state, and describes all of its effects.
    let attempt = |at: u64, bytes: &[u8]| {
        pwrite(&device, Space::Config, COMMAND, &0x0103u16.to_le_bytes());
        let before = zaps(&device, BAR2);
        let written = pwrite(&device, Space::Config, at, bytes);
        let then = load(base, 8).map_or_else(short, |_| "ok".into());
        let zapped = zaps(&device, BAR2) > before;
        let zap = if then == "SIGBUS" {
            "revoked"
        } else if zapped {
            "zapped"
        } else {
            "not zapped"
        };
        (format!("{written}; COMMAND {}; load {then}", command(&device)), zap)
    };
    let full = |(outcome, zap): (String, &str)| format!("{outcome}; {zap}");
    s.row("2-byte write, no change (bit stays on)", full(attempt(4, &[3, 1])));
    s.row("2-byte write toggling bus master, memory stays on", full(attempt(4, &[7, 1])));
    s.row("2-byte write toggling INTx disable, memory on", full(attempt(4, &[3, 5])));
    s.row("2-byte write clearing the bit", full(attempt(4, &[1, 1])));
    s.row("1-byte write @4 clearing the bit", full(attempt(4, &[1])));
    s.row("1-byte write @5 (high byte; memory bit not in it) := 0", full(attempt(5, &[0])));
    s.row("1-byte write @5 := 0xff", full(attempt(5, &[0xff])));
    s.row("4-byte write @4 keeping the bit", full(attempt(4, &[3, 1, 0, 0])));
    s.row("4-byte write @3 (unaligned, across COMMAND) clearing the bit", full(attempt(3, &[0, 1, 1, 0])));
    s.row("4-byte write @2 (unaligned) clearing the bit", full(attempt(2, &[0, 0, 1, 1])));
    s.row("2-byte write @3 (unaligned) clearing the bit", full(attempt(3, &[0, 1])));
    s.row("2-byte write @3 keeping the bit", full(attempt(3, &[0, 3])));
    s.more(
        "4-byte write @4 clearing the bit",
        full(attempt(4, &[1, 1, 0xff, 0xff])),
        "4; COMMAND 0x0101; load SIGBUS; revoked",
    );
    s.more(
        "8-byte write @0 clearing the bit",
        full(attempt(0, &[0, 0, 0, 0, 1, 1, 0, 0])),
        "8; COMMAND 0x0101; load SIGBUS; revoked",
    );
    s.more("3-byte write @4 keeping the bit", full(attempt(4, &[3, 1, 0])), "3; COMMAND 0x0103; load ok; not zapped");
    s.more("1-byte write @6 (status)", full(attempt(6, &[0xff])), "1; COMMAND 0x0103; load ok; not zapped");
    let mut header = [0; 16];
    header[4..6].copy_from_slice(&[1, 1]);
    s.row("16-byte pwrite over the header's start, bit clear", attempt(0, &header).0);
    header[4..6].copy_from_slice(&[3, 1]);
    s.row("16-byte pwrite, bit set", attempt(0, &header).0);
    s.row("5-byte pwrite @0 ending in the low COMMAND byte, bit clear", attempt(0, &[0, 0, 0, 0, 1]).0);
    s.more("the ids after that", format!("{:x?}", config::<4>(&device, 0)), "[f4, 1a, 10, 11]");
    s.row("BAR2 sizing (write 0xffffffff @0x18), memory on", full(attempt(0x18, &[0xff; 4])));
    let sized = u32::from_le_bytes(config(&device, 0x18));
    s.row("BAR2 sizing (write 0xffffffff @0x18), memory on › BAR2 reads back (virtual)", format!("{sized:#x}"));
    pwrite(&device, Space::Config, 0x1c, &[0xff; 4]);
    let upper = u32::from_le_bytes(config(&device, 0x1c));
    s.more("BAR2's upper half, sized", format!("{upper:#x}"), "0xffffffff");
    pwrite(&device, Space::Config, 0x10, &[0xff; 4]);
    s.more("BAR0, sized", format!("{:#x}", u32::from_le_bytes(config(&device, 0x10))), "0xffffff00");
    pwrite(&device, Space::Config, 0x24, &[0xff; 4]);
    s.more("absent BAR5, sized", format!("{:#x}", u32::from_le_bytes(config(&device, 0x24))), "0x0");
    s.row("BAR2 moved (virtual address only)", full(attempt(0x18, &[0, 0, 0, 0xe0])));
    s.row("interrupt line write", full(attempt(0x3c, &[11])));
    on(&device);
    let bad = rc(device.write(Space::Config, COMMAND, &Bad { len: 2, good: 0 }));
    let then = load(base, 8).map_or_else(short, |_| "ok".into());
    s.row("pwrite config with a bad buffer while on: rc, load", format!("{bad} {then}"));
    s.row("pwrite config len 0 @4", pwrite(&device, Space::Config, 4, &[]));
    s.more("pwrite config across its end", pwrite(&device, Space::Config, 250, &[0; 8]), "-1 EFAULT");
    for at in (0..BIG).step_by(4096) {
        load(base.wrapping_add(at), 8).expect("enabled");
    }
    pwrite(&device, Space::Config, COMMAND, &device.command().to_le_bytes());
    let before = faults();
    for at in (0..BIG).step_by(4096) {
        load(base.wrapping_add(at), 8).expect("enabled");
    }
    let refaults = faults().0 - before.0;
    s.row("16 MiB touched, COMMAND rewritten unchanged: refaults", refaults.to_string());
    s.section("p");
    let aligned = if base.addr() % (2 << 20) == 0 { "0" } else { "unaligned" };
    let again = format!(
        "va%2M={aligned}; first touch @0x0: {refaults} fault; then touching all 4096 pages of {BIG:#x}: {refaults} more"
    );
    s.row("16 MiB BAR, default address › again without disabling", again);
    off(&device);
    load(base, 8).expect_err("off");
    let before = faults();
    for _ in 0..10 {
        load(base, 8).expect_err("off");
    }
    s.row("minor faults from 10 SIGBUS loads", (faults().0 - before.0).to_string());
}
