//! Several mappings, partial ones, split ones, and mappings made while disabled (sections d, e, h).

use crate::devices::*;
use crate::suite::Suite;
use crate::support::forking;
use crate::support::raw::{Hit, load, store};
use crate::syscalls::{Pipe, tmpfs_file, writev};
use nix::libc;
use revocable_mmio::pci::PciDevice;
use revocable_mmio::{MapOptions, Mapping, Prot};
use std::io::{Seek, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;

pub(crate) fn protect(at: *mut u8, len: usize, rights: libc::c_int) -> String {
    // SAFETY: a part of a mapping that only this test uses.
    sys(unsafe { libc::mprotect(at.cast(), len, rights) } as isize)
}

/// mprotect of a part through the crate, which keeps the rights over revocations.
fn told(mapping: &Mapping, part: Range<usize>, rights: Prot) -> String {
    mapping.protect(part, rights).map_or_else(|e| e.to_string(), |()| "0".to_owned())
}

fn unmap(at: *mut u8, len: usize) -> String {
    // SAFETY: as for `protect`.
    sys(unsafe { libc::munmap(at.cast(), len) } as isize)
}

/// Puts a page of ordinary memory over what is there.
pub(crate) fn map_over(at: *mut u8) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: a part of a mapping that only this test uses.
    assert_eq!(unsafe { libc::mmap(at.cast(), 4096, RW, flags, -1, 0) }, at.cast());
}

const RW: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

fn short_load(at: *const u8) -> String {
    load(at, 8).map_or_else(short, |_| "ok".into())
}

pub(crate) fn partial(s: &mut Suite) {
    s.section("d");
    let device = ivshmem(s);
    let other = ivshmem(s);
    let others = map(&other, BAR2);
    store(others.as_ptr(), 8, 1).expect("enabled");
    let part =
        |offset: usize, len: usize| device.map(BAR2, MapOptions::new().offset(offset).len(len)).expect("a mapping");
    let (a, b) = (map(&device, BAR2), map(&device, BAR2));
    let c = part(0x5000, 0x3000);
    let d = part(2 << 20, 1 << 20);
    let e = part(BIG - 4096, 4096);
    let g = map(&device, BAR0);
    let at = |mapping: &Mapping, offset: usize| mapping.as_ptr().wrapping_add(offset);
    for page in (0..BIG).step_by(4096) {
        store(at(&a, page), 8, page as u64).expect("enabled");
    }
    // BAR 0 is separate memory. The recording found 0x1000 in it.
    store(g.as_ptr(), 8, 0x1000).expect("enabled");
    d.protect(0..0x1000, Prot::Read).expect("the crate is told");

    let ro = at(&b, 0x20000);
    let split = told(&b, 0x20000..0x24000, Prot::Read);
    let refused = show(store(ro, 8, 0).expect_err("read-only"), b.as_ptr());
    s.row(
        "mprotect [0x20000,0x24000) of map b read-only: load/store there",
        format!("{split}; {} / {refused}", value(load(ro, 8))),
    );
    let none = at(&b, 0x30000);
    let split = told(&b, 0x30000..0x34000, Prot::None);
    let refused = show(load(none, 8).expect_err("no access"), b.as_ptr());
    s.row("mprotect [0x30000,0x34000) of map b PROT_NONE: load", format!("{split}; {refused}"));
    assert_eq!(unmap(at(&b, 0x10000), 0x4000), "0");
    let loads = [at(&a, 0), at(&b, 0), at(&c, 0), at(&d, 0), at(&e, 0)].map(|at| value(load(at, 8)));
    s.row("before off: a b c d e loads", loads.join(" "));

    off(&device);
    s.row("off: whole map a @0, @end", format!("{} {}", short_load(at(&a, 0)), short_load(at(&a, BIG - 8))));
    let sides = [0x8000, 0x14000, 0x20000].map(|offset| short_load(at(&b, offset)));
    s.row("off: map b left part, right part, RO part", sides.join(" "));
    let refused = done(store(ro, 8, 0), b.as_ptr());
    s.row("off: store to the mprotected read-only part (which signal wins)", refused);
    s.more("off: load of the PROT_NONE part", short_load(none), "SIGSEGV");
    s.row("off: load in the unmapped hole", loaded(load(at(&b, 0x11000), 8), b.as_ptr()));
    let exact = loaded(load(at(&c, 0x1008), 8), c.as_ptr());
    s.row("off: offset map c (BAR 0x5000..0x8000) @0x1008", exact);
    let stored = store(at(&d, 0), 8, 0).map_or_else(short, |()| "ok".into());
    let parts = [short_load(at(&d, 0)), stored, short_load(at(&d, 0x2000))];
    s.row("off: map d (2 MiB offset, part RO) RO load / store / RW part", parts.join(" / "));
    s.row("off: one-page map e at BAR end", short_load(e.as_ptr()));
    s.row("off: map of BAR0 (sub-page BAR)", short_load(g.as_ptr()));
    let there = at(&a, 0x100000);
    let (shut, open) = (protect(there, 0x2000, libc::PROT_READ), protect(there, 0x2000, RW));
    s.row("off: mprotect part RW->RO->RW", format!("{shut} {open}; load {}", short_load(there)));
    let hole = unmap(at(&a, 0x200000), 0x1000);
    s.row("off: munmap a part of a, then load beside it", format!("{hole} {}", short_load(at(&a, 0x201000))));
    s.row("other device unaffected: its page", value(load(others.as_ptr(), 8)));

    on(&device);
    let mut mismatches = 0;
    for page in (0..BIG).step_by(4096).filter(|page| *page != 0x200000) {
        mismatches += u32::from(load(at(&a, page), 8) != Ok(page as u64));
    }
    s.row("on: every page of map a holds what was written (mismatches)", mismatches.to_string());
    let loads = [at(&b, 0x14000), at(&c, 0), at(&d, 0x2000), at(&e, 0), at(&g, 0)].map(|at| value(load(at, 8)));
    s.row("on: b c d e g loads", loads.join(" "));
    s.row("on: RO part still refuses stores", done(store(ro, 8, 0), b.as_ptr()));
    edge(s, &device);
}

/// A live page right before a revoked one.
fn edge(s: &mut Suite, device: &PciDevice) {
    let (mapping, base) = beside(device);
    let edge = base.wrapping_add(4096);
    assert_eq!(mapping.as_ptr(), edge);
    store(edge.wrapping_sub(8), 8, 0x5555_5555_5555_5555).expect("ordinary memory");
    off(device);
    let half = edge.wrapping_sub(4);
    s.row("8-byte load over [live page, revoked page]", loaded(load(half, 8), base));
    let stored = done(store(half, 8, 0), base);
    let first = load(half, 1).expect("ordinary memory");
    s.row("8-byte store over [live, revoked]", format!("{stored}; first half afterwards {first:#x}"));
    let from = edge.wrapping_sub(16);
    let pipe = Pipe::new();
    s.row("write(pipe, [live, revoked], 32) from 16 before the edge", pipe.write(from, 32));
    let mut buffer = [0u8; 64];
    let row = "write(pipe, [live, revoked], 32) from 16 before the edge › bytes in the pipe";
    s.row(row, pipe.read(buffer.as_mut_ptr(), 64));
    let file = tmpfs_file();
    // SAFETY: the kernel checks the buffer.
    s.row("write(tmpfs file, same)", sys(unsafe { libc::write(file.as_raw_fd(), from.cast(), 32) }));
    s.row("writev(file, same)", writev(&file, &[(from, 32)]));
    assert_eq!(pipe.write(buffer.as_ptr(), 32), "32");
    s.row("read(pipe, into [live, revoked], 32)", pipe.read(from, 32));
    let mut file = tmpfs_file();
    file.write_all(&[1; 32]).expect("a file");
    file.rewind().expect("a file");
    // SAFETY: the kernel checks the buffer; the live half is this test's own.
    s.row("read(file, into [live, revoked], 32)", sys(unsafe { libc::read(file.as_raw_fd(), from.cast(), 32) }));
    on(device);
    unmap(base, 4096);
}

/// A mapping of a page, and a page of ordinary memory right before it.
fn beside(device: &PciDevice) -> (Mapping, *mut u8) {
    let mut kept = Vec::new();
    for len in [4096, 8192, 1 << 20, 4 << 20, 8 << 20] {
        for _ in 0..16 {
            let mapping = device.map(BAR2, MapOptions::new().len(len)).expect("a mapping");
            let before = mapping.as_ptr().wrapping_sub(4096);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            // SAFETY: replaces nothing.
            let at = unsafe { libc::mmap(before.cast(), 4096, RW, flags, -1, 0) };
            if at == before.cast() {
                return (mapping, before);
            }
            kept.push(mapping);
        }
    }
    panic!("no free page before any mapping");
}

/// A child has no device memory (MADV_DONTFORK), so nothing of a fork can escape a revocation.
pub(crate) fn forked(s: &mut Suite) {
    s.section("e");
    let device = ivshmem(s);
    let mapping = map(&device, BAR2);
    let base = mapping.as_ptr();
    store(base, 8, 0).expect("enabled");
    let outcome = in_child(base);
    s.row("child: load in the inherited mapping; faults for it", outcome);
    off(&device);
    s.row("child forked while off: load", in_child(base));
    on(&device);
    s.row("vfork child load (signal no)", in_vforked_child(base));
    s.more("parent: load", loaded(load(base, 8), base), "ok 0x0");
}

/// Makes a child that shares the address space, as vfork does. Returns the signal that its load got, or 0.
fn in_vforked_child(base: *mut u8) -> String {
    extern "C" fn child(base: *mut libc::c_void) -> libc::c_int {
        load(base.cast(), 8).map_or_else(|met| met.signal, |_| 0)
    }
    let mut stack = vec![0u128; 16 << 10];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is the child's alone until it has ended, which this thread waits for.
    let pid = unsafe { libc::clone(child, stack.as_mut_ptr_range().end.cast(), flags, base.cast()) };
    assert!(pid > 0, "clone");
    forking::reap(pid).to_string()
}

fn in_child(base: *mut u8) -> String {
    let pipe = Pipe::new();
    // The child makes one access and one system call.
    let code = forking::exit_code(|| {
        let result = load(base, 8);
        let (kind, addr) = result.map_or_else(|met| (met.signal as u8 * 16 + met.code as u8, met.addr), |_| (0, 0));
        let mut message = [0; 9];
        message[0] = kind;
        message[1..].copy_from_slice(&addr.to_le_bytes());
        pipe.write(message.as_ptr(), 9);
        0
    });
    assert_eq!(code, 0);
    let mut message = [0; 9];
    assert_eq!(pipe.read(message.as_mut_ptr(), 9), "9");
    let met = Hit {
        signal: i32::from(message[0] / 16),
        code: i32::from(message[0] % 16),
        addr: usize::from_le_bytes(message[1..].try_into().expect("8 bytes")),
    };
    if message[0] == 0 { "ok".into() } else { show(met, base) }
}

pub(crate) fn while_disabled(s: &mut Suite) {
    s.section("h");
    let device = ivshmem(s);
    off(&device);
    let mapping = device.map(BAR2, MapOptions::new());
    s.row("mmap while off", if mapping.is_ok() { "ok" } else { "refused" });
    let mapping = mapping.expect("a mapping");
    let base = mapping.as_ptr();
    s.row("load", loaded(load(base, 8), base));
    s.row("store", done(store(base, 8, 1), base));
    s.row("first mmap of another BAR (BAR0) while off", ok(device.map(BAR0, MapOptions::new())));
    device.owner(BAR2).expect("memory").write(0, 0x4848u64).expect("the owner's view");
    let enabled = on(&device);
    s.row("on: load", format!("{enabled} {}", loaded(load(base, 8), base)));
}
