//! System calls whose buffer is a mapping.

use crate::devices::*;
use crate::suite::Suite;
use crate::support::raw::{load, store};
use nix::libc::{self, c_void};
use revocable_mmio::Mapping;
use revocable_mmio::pci::{MappingPart, PciDevice, Space};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null;

pub(crate) struct Pipe(OwnedFd, OwnedFd);

impl Pipe {
    pub(crate) fn new() -> Self {
        let mut fds = [0; 2];
        // SAFETY: an array of two, as pipe2 asks for. The descriptors are new and have no other owner.
        unsafe {
            assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC), 0);
            Self(OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
        }
    }

    pub(crate) fn write(&self, from: *const u8, len: usize) -> String {
        // SAFETY: the kernel checks the buffer.
        sys(unsafe { libc::write(self.1.as_raw_fd(), from.cast(), len) })
    }

    pub(crate) fn read(&self, into: *mut u8, len: usize) -> String {
        // SAFETY: the kernel checks the buffer, and no code relies on its content.
        sys(unsafe { libc::read(self.0.as_raw_fd(), into.cast(), len) })
    }
}

/// A file on tmpfs.
pub(crate) fn tmpfs_file() -> File {
    // SAFETY: a literal name. The descriptor is new and has no other owner.
    unsafe { File::from_raw_fd(libc::memfd_create(c"file".as_ptr(), libc::MFD_CLOEXEC)) }
}

fn vector(base: *const u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len }
}

pub(crate) fn writev(file: &File, parts: &[(*const u8, usize)]) -> String {
    let parts: Vec<_> = parts.iter().map(|(at, len)| vector(*at, *len)).collect();
    let count = libc::c_int::try_from(parts.len()).expect("a few");
    // SAFETY: the kernel checks the buffers.
    sys(unsafe { libc::writev(file.as_raw_fd(), parts.as_ptr(), count) })
}

fn vm(read: bool, at: *const u8) -> String {
    let mut buffer = [0u8; 8];
    let (own, theirs) = (vector(buffer.as_mut_ptr(), 8), vector(at, 8));
    // SAFETY: the kernel checks the buffers.
    sys(unsafe {
        match read {
            true => libc::process_vm_readv(libc::getpid(), &own, 1, &theirs, 1, 0),
            false => libc::process_vm_writev(libc::getpid(), &own, 1, &theirs, 1, 0),
        }
    })
}

fn proc_mem(read: bool, at: *const u8) -> String {
    let file = File::options().read(true).write(true).open("/proc/self/mem").expect("/proc");
    let mut buffer = [0u8; 8];
    let offset = libc::off_t::try_from(at.addr()).expect("user space");
    // SAFETY: an ordinary buffer; no code relies on the content at `at`.
    sys(unsafe {
        match read {
            true => libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().cast(), 8, offset),
            false => libc::pwrite(file.as_raw_fd(), buffer.as_ptr().cast(), 8, offset),
        }
    })
}

pub(crate) fn advise(at: *mut u8, len: usize, advice: libc::c_int) -> String {
    // SAFETY: none of the advices given here changes content.
    sys(unsafe { libc::madvise(at.cast(), len, advice) } as isize)
}

fn mlock(at: *const u8) -> String {
    // SAFETY: locks and unlocks a page of a mapping.
    unsafe {
        let locked = sys(libc::mlock(at.cast(), 4096) as isize);
        libc::munlock(at.cast(), 4096);
        locked
    }
}

fn msync(at: *mut u8) -> String {
    // SAFETY: writes back, if anything.
    sys(unsafe { libc::msync(at.cast(), 4096, libc::MS_SYNC) } as isize)
}

fn futex(at: *mut u8, operation: libc::c_int, value: u32) -> String {
    let timeout = libc::timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    // SAFETY: the kernel checks the address.
    sys(unsafe { libc::syscall(libc::SYS_futex, at, operation, value, &raw const timeout, null::<c_void>(), 0) }
        as isize)
}

fn clock(at: *mut u8) -> String {
    // SAFETY: the kernel checks the address. libc's own function would not make a system call.
    sys(unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, at) } as isize)
}

fn vmsplice(pipe: &Pipe, at: *const u8) -> String {
    let part = vector(at, 8);
    // SAFETY: the kernel checks the buffer.
    sys(unsafe { libc::vmsplice(pipe.1.as_raw_fd(), &part, 1, 0) })
}

fn sockets() -> [OwnedFd; 2] {
    let mut fds = [0; 2];
    // SAFETY: an array of two, as socketpair asks for. The descriptors are new and have no other owner.
    unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
        assert_eq!(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()), 0);
        fds.map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

fn send(socket: &OwnedFd, at: *const u8) -> String {
    // SAFETY: the kernel checks the buffer.
    sys(unsafe { libc::send(socket.as_raw_fd(), at.cast(), 8, 0) })
}

fn receive(socket: &OwnedFd, at: *mut u8) -> String {
    // SAFETY: the kernel checks the buffer.
    sys(unsafe { libc::recv(socket.as_raw_fd(), at.cast(), 8, 0) })
}

fn mincore(at: *mut u8) -> (String, u8) {
    let mut resident = 0u8;
    // SAFETY: one page, one byte.
    let answer = sys(unsafe { libc::mincore(at.cast(), 4096, &raw mut resident) } as isize);
    (answer, resident & 1)
}

pub(crate) fn enabled(s: &mut Suite, device: &PciDevice, mapping: &Mapping) {
    let base = mapping.as_ptr();
    let at = |offset: usize| base.wrapping_add(offset);
    s.prefix("enabled: ");
    let pipe = Pipe::new();
    s.row("write(pipe, bar, 8)", pipe.write(base, 8));
    s.row("read(pipe, bar+64, 8)", pipe.read(at(64), 8));
    let file = tmpfs_file();
    s.row("write(tmpfs file, bar, 8)", writev(&file, &[(base, 8)]));
    let good = [0u8; 4];
    s.row("writev(file, {good 4, bar 4})", writev(&file, &[(good.as_ptr(), 4), (base, 4)]));
    s.row("process_vm_readv(self, bar)", vm(true, base));
    s.row("process_vm_writev(self, bar)", vm(false, at(64)));
    s.row("pread(/proc/self/mem, bar)", proc_mem(true, base));
    s.row("pwrite(/proc/self/mem, bar)", proc_mem(false, at(64)));
    s.row("MADV_POPULATE_READ", advise(base, 4096, libc::MADV_POPULATE_READ));
    s.row("MADV_POPULATE_WRITE", advise(base, 4096, libc::MADV_POPULATE_WRITE));
    s.row("mlock", mlock(base));
    s.row("msync(MS_SYNC)", msync(base));
    let word = load(at(64), 4).expect("enabled");
    let other = u32::try_from(word).expect("4 bytes").wrapping_add(1);
    s.row("futex(WAIT, val mismatch, timeout 50ms)", futex(at(64), libc::FUTEX_WAIT, other));
    s.row("futex(WAKE) shared", futex(at(64), libc::FUTEX_WAKE, 1));
    let read = rc(device.read(Space::Config, 0, &mut MappingPart::new(mapping, 512..516)));
    s.row("pread(devfd config, into bar+512, 4)", read);
    // SAFETY: the kernel checks the buffer.
    s.row("getrandom(bar+1024, 8)", sys(unsafe { libc::getrandom(at(1024).cast(), 8, 0) }));
    s.row("clock_gettime syscall into bar+2048", clock(at(2048)));
    s.row("vmsplice(pipe, bar, 8)", vmsplice(&Pipe::new(), base));
    let [a, b] = sockets();
    s.row("send(unix socket, bar, 8)", send(&a, base));
    s.row("recv(unix socket, bar+64, 8)", receive(&b, at(64)));
    s.row("pread(BAR region, 8)", pread(device, BAR2, 0, 8));
    s.row("pwrite(BAR region, 8)", pwrite(device, BAR2, 64, &[0; 8]));
    s.prefix("");
    s.row("MADV_DONTNEED", advise(at(0x10000), 4096, libc::MADV_DONTNEED));
}

/// What an application may ask the kernel to do with a mapping.
pub(crate) fn advices(s: &mut Suite, mapping: &Mapping) {
    let base = mapping.as_ptr();
    let at = |offset: usize| base.wrapping_add(offset);
    let (answer, resident) = mincore(base);
    s.row("enabled: mincore", answer);
    s.row("enabled: mincore vec", resident.to_string());
    s.row("MADV_HUGEPAGE", advise(at(0xa000), 4096, libc::MADV_HUGEPAGE));
    let kin = [libc::MADV_FREE, libc::MADV_COLD, libc::MADV_PAGEOUT, libc::MADV_REMOVE];
    // A page without content: the last one takes it.
    let kin = kin.map(|advice| advise(at(0xa000), 4096, advice));
    s.row("MADV_FREE / MADV_COLD / MADV_PAGEOUT / MADV_REMOVE", kin.join(" / "));
    let dont = advise(at(0xa000), 4096, libc::MADV_DONTFORK);
    s.row("MADV_DONTFORK / MADV_DOFORK", format!("{dont} / {}", advise(at(0xa000), 4096, libc::MADV_DOFORK)));
    advise(at(0xa000), 4096, libc::MADV_DONTFORK);
    let pipe = Pipe::new();
    // Faulted in by a load: the faults of system calls take rights that not every process has.
    mapping.read::<u32>(0xa040).expect("enabled");
    // SAFETY: the kernel checks the argument's address, to which it writes a number.
    let asked = sys(unsafe { libc::ioctl(pipe.0.as_raw_fd(), libc::FIONREAD, at(0xa040)) } as isize);
    s.row("enabled: ioctl with its argument in the BAR (GET_REGION_INFO)", asked);
}

pub(crate) fn disabled(s: &mut Suite, device: &PciDevice, mapping: &Mapping) {
    let base = mapping.as_ptr();
    let at = |offset: usize| base.wrapping_add(offset);
    s.prefix("disabled: ");
    let pipe = Pipe::new();
    let eight = [0u8; 8];
    assert_eq!(pipe.write(eight.as_ptr(), 8), "8");
    s.row("write(pipe, bar, 8)", pipe.write(base, 8));
    let mut all = [0u8; 64];
    s.row("bytes left in the pipe after that", pipe.read(all.as_mut_ptr(), 64));
    let file = tmpfs_file();
    s.row("writev(file, {good 4, bar 4})", writev(&file, &[(eight.as_ptr(), 4), (base, 4)]));
    s.row("process_vm_readv(self, bar)", vm(true, base));
    s.row("process_vm_writev(self, bar)", vm(false, base));
    s.row("pread(/proc/self/mem, bar)", proc_mem(true, base));
    s.more("pwrite(/proc/self/mem, bar)", proc_mem(false, base), "-1 EIO");
    s.row("MADV_POPULATE_READ", advise(base, 4096, libc::MADV_POPULATE_READ));
    s.row("MADV_POPULATE_WRITE", advise(base, 4096, libc::MADV_POPULATE_WRITE));
    s.row("msync(MS_SYNC)", msync(base));
    s.row("futex(WAKE) shared", futex(base, libc::FUTEX_WAKE, 1));
    s.more("futex(WAIT)", futex(base, libc::FUTEX_WAIT, 0), "-1 EFAULT");
    let read = rc(device.read(Space::Config, 0, &mut MappingPart::new(mapping, 512..516)));
    s.row("pread(devfd config, into bar+512, 4)", read);
    s.row("clock_gettime syscall into bar+2048", clock(at(2048)));
    // SAFETY: the kernel checks the buffer.
    s.more("getrandom(bar+1024, 8)", sys(unsafe { libc::getrandom(at(1024).cast(), 8, 0) }), "-1 EFAULT");
    s.row("vmsplice(pipe, bar, 8)", vmsplice(&Pipe::new(), base));
    let [a, b] = sockets();
    s.more("send(unix socket, bar, 8)", send(&a, base), "-1 EFAULT");
    assert_eq!(send(&a, eight.as_ptr()), "8");
    s.row("recv(unix socket, bar+64, 8)", receive(&b, at(64)));
    s.row("pread(BAR region, 8)", pread(device, BAR2, 0, 8));
    s.row("pwrite(BAR region, 8)", pwrite(device, BAR2, 0, &[0; 8]));
    s.row("mincore vec", mincore(base).1.to_string());
    s.row("mlock", mlock(base));
    s.prefix("");
    let before = faults();
    for _ in 0..10 {
        assert!(load(base, 8).is_err() && store(base, 8, 0).is_err());
    }
    let after = faults();
    let per = |n: i64| if n < 10 { 0 } else { n / 20 };
    s.row(
        "minor faults counted per SIGBUS access",
        format!("min {}, maj {}", per(after.0 - before.0), per(after.1 - before.1)),
    );
}

/// Minor and major faults of this thread so far.
pub(crate) fn faults() -> (i64, i64) {
    // SAFETY: a plain structure for the kernel to fill.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
        usage
    };
    (usage.ru_minflt, usage.ru_majflt)
}
