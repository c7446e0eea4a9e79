//! Pages that the kernel holds: handed to it while the region was enabled, they stay reachable through what holds them.
//! This is a documented limit, and a `Pin` makes a revocation wait for such a use.

use super::calls::{fix_pages, read_from_start, read_own_memory, splice_pages, write_at_start};
use super::{SECRET, addr};
use crate::support::matrix::{Case, Memory, STRATEGIES, file_in};
use crate::support::waiter::Waiter;
use crate::support::{self, raw, skip};
use io_uring::{IoUring, opcode, squeue, types};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{pipe, read};
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{MapOptions, Mapping, OnDisabled, Region, RevokeError, Strategy};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

const PAGE: usize = 4096;
/// For waits that may depend on a monitor in the middle of a fault, but not on a guard or a pin.
const PATIENCE: Duration = Duration::from_secs(20);
const LATER: u64 = 0x1a7e_1a7e_1a7e_1a7e;

fn every_case_of_pages(test: impl Fn(&Case, &Region, &Mapping)) {
    for memory in [Memory::Memfd, Memory::ShmFile] {
        for strategy in STRATEGIES {
            let case = Case { strategy, policy: OnDisabled::Sigbus, memory };
            // With a userfaultfd for user-mode faults only, the kernel gets no pages to hold.
            if case.is_legal() && (strategy != revocable_mmio::Strategy::Zap || case.kernel_waits()) {
                let region = case.region(2);
                let mapping = case.map(&region);
                mapping.write(0, SECRET).expect("enabled");
                test(&case, &region, &mapping);
            }
        }
    }
}

/// The right use of such pages: a revocation waits for the pin, and its holder is told.
fn with_a_pin(case: &Case, region: &Region, hold: impl FnOnce(usize), let_go: impl FnOnce()) {
    let pin = region.pin(0..PAGE, FaultFlags::WRITE).expect("enabled");
    hold(pin.as_ptr().expose_provenance());
    match region.try_disable() {
        Err(RevokeError::Busy(holders)) => assert_eq!(holders.pins, 1, "{case}"),
        other => panic!("{case}: revoked under a pin: {other:?}"),
    }
    let_go();
    drop(pin);
    assert!(region.disable_timeout(PATIENCE).expect("no pin is held"), "{case}");
    region.enable().expect("it comes back");
}

fn word(from: BorrowedFd<'_>) -> u64 {
    let mut page = [0; PAGE];
    assert_eq!(read(from, &mut page), Ok(PAGE), "it is in there");
    u64::from_le_bytes(page[..8].try_into().expect("eight bytes"))
}

/// The call has pinned the page when it waits for its buffer, which is memory of a region that is being reset.
///
/// The last word of many tells: without `fsrm` the kernel copies by registers, and has loaded the first words when the store
/// of them faults (`rep_movs_alternative` in arch/x86/lib/copy_user_64.S; 64 bytes ahead on aarch64).
#[test]
fn a_process_vm_readv_under_way_outlives_a_revocation_and_a_later_one_does_not() {
    support::start();
    let other = Region::builder(PAGE).build().expect("a region");
    let buffer = other.map(MapOptions::new()).expect("it maps");
    const MANY: usize = 1024;
    const LAST: usize = MANY - 8;
    every_case_of_pages(|case, region, mapping| {
        if !case.kernel_waits() {
            return skip("no userfaultfd makes a system call wait", false);
        }
        mapping.write(LAST, SECRET).expect("enabled");
        let (from, into) = (addr(mapping), addr(&buffer));
        // So that the call waits for its buffer only: an accessor may have stored by another mapping.
        assert_eq!(raw::load64(from + LAST), Ok(SECRET), "{case}");
        let reading = other.reset(|_| {
            let waiter = Waiter::default();
            let begins = waiter.clone();
            let reading = std::thread::spawn(move || {
                begins.begins();
                read_own_memory(from, into, MANY)
            });
            waiter.until_it_faults();
            assert!(!reading.is_finished(), "{case}: it waits for its buffer");
            region.disable().expect("the region does not know of the call");
            region.owner().write(LAST, LATER).expect("the owner writes");
            reading
        });
        let read = reading.expect("a reset").join().expect("no panic");
        assert_eq!(read, Ok(MANY), "{case}");
        // Under Withdraw the call has kept a page that is not the region's any more.
        let kept = if case.strategy == Strategy::Withdraw { SECRET } else { LATER };
        assert_eq!(buffer.read::<u64>(LAST), Ok(kept), "{case}: the page itself (see SECURITY)");
        assert_eq!(read_own_memory(from, into, 8), Err(Errno::EFAULT), "{case}: no new call succeeds");
        region.enable().expect("it comes back");
    });
}

#[test]
fn pages_in_a_pipe_outlive_a_revocation_unless_it_waits_for_a_pin() {
    support::start();
    every_case_of_pages(|case, region, mapping| {
        let base = addr(mapping);
        let (out, into) = pipe().expect("a pipe");
        let splice = |at| splice_pages(into.as_fd(), at, PAGE);
        assert_eq!(splice(base), Ok(PAGE), "{case}");
        region.disable().expect("the region does not know of the pipe");
        region.owner().write(0, LATER).expect("the owner writes");
        let kept = if case.strategy == Strategy::Withdraw { SECRET } else { LATER };
        assert_eq!(word(out.as_fd()), kept, "{case}: the page itself, not a copy (see SECURITY)");
        assert_eq!(splice(base), Err(Errno::EFAULT), "{case}: no new call succeeds");
        region.enable().expect("it comes back");
        with_a_pin(
            case,
            region,
            |at| assert_eq!(splice(at), Ok(PAGE), "{case}"),
            || assert_eq!(word(out.as_fd()), LATER),
        );
    });
}

/// A ring with one request at a time.
struct Ring(IoUring);

impl Ring {
    fn new() -> Option<Self> {
        match IoUring::new(4) {
            Ok(ring) => Some(Self(ring)),
            Err(e) => {
                let may = support::read_text("/proc/sys/kernel/io_uring_disabled").trim() == "0";
                skip(&format!("no io_uring: {e}"), may && support::at_its_best());
                None
            }
        }
    }

    fn fix(&self, at: usize) -> Result<(), Errno> {
        fix_pages(&self.0, at, PAGE)
    }

    fn unfix(&self) {
        self.0.submitter().unregister_buffers().expect("they were registered");
    }

    /// Runs the request, and returns its bytes or its errno.
    fn run(&mut self, request: &squeue::Entry) -> Result<usize, Errno> {
        super::calls::push(&mut self.0, request);
        self.0.submit_and_wait(1).expect("it is taken");
        let done = self.0.completion().next().expect("it is done").result();
        usize::try_from(done).map_err(|_| Errno::from_raw(-done))
    }
}

/// Pointer and length as io_uring takes them.
fn page_at(at: usize) -> (*mut u8, u32) {
    (std::ptr::with_exposed_provenance_mut(at), 4096)
}

fn write_fixed(file: BorrowedFd<'_>, at: usize) -> squeue::Entry {
    let (at, len) = page_at(at);
    opcode::WriteFixed::new(types::Fd(file.as_raw_fd()), at, len, 0).build()
}

fn read_fixed(file: BorrowedFd<'_>, at: usize) -> squeue::Entry {
    let (at, len) = page_at(at);
    opcode::ReadFixed::new(types::Fd(file.as_raw_fd()), at, len, 0).build()
}

fn write(file: BorrowedFd<'_>, at: usize) -> squeue::Entry {
    let (at, len) = page_at(at);
    opcode::Write::new(types::Fd(file.as_raw_fd()), at, len).build()
}

#[test]
fn fixed_buffers_of_io_uring_outlive_a_revocation_unless_it_waits_for_a_pin() {
    support::start();
    let Some(mut ring) = Ring::new() else { return };
    let ring = std::cell::RefCell::new(&mut ring);
    every_case_of_pages(|case, region, mapping| {
        let base = addr(mapping);
        let ring = &mut **ring.borrow_mut();
        let file = raw::scratch();
        let content = || {
            let mut word = [0; 8];
            nix::sys::uio::pread(&file, &mut word, 0).expect("a file");
            u64::from_le_bytes(word)
        };
        ring.fix(base).unwrap_or_else(|e| panic!("{case}: {e}"));
        region.disable().expect("the region does not know of the ring");
        assert_eq!(ring.run(&write_fixed(file.as_fd(), base)), Ok(PAGE), "{case}");
        assert_eq!(content(), SECRET, "{case}: read while disabled (see SECURITY)");
        nix::sys::uio::pwrite(&file, &LATER.to_le_bytes(), 0).expect("a file");
        assert_eq!(ring.run(&read_fixed(file.as_fd(), base)), Ok(PAGE), "{case}");
        // Under Withdraw the ring has kept a page that is not the region's any more.
        let kept = if case.strategy == Strategy::Withdraw { SECRET } else { LATER };
        assert_eq!(region.owner().read::<u64>(0), Ok(kept), "{case}: written while disabled (see SECURITY)");
        // By address the request fails like every system call.
        assert_eq!(ring.run(&write(file.as_fd(), base)), Err(Errno::EFAULT), "{case}");
        assert_eq!(raw::write_from(base, 8), Err(Errno::EFAULT), "{case}");
        ring.unfix();
        assert_eq!(
            ring.run(&write_fixed(file.as_fd(), base)),
            Err(Errno::EFAULT),
            "{case}: once unregistered, it is gone"
        );
        assert!(ring.fix(base).is_err(), "{case}: no new registration");
        region.enable().expect("it comes back");
        assert_eq!(ring.run(&write(file.as_fd(), base)), Ok(PAGE), "{case}");
        assert_eq!(content(), kept, "{case}");
        with_a_pin(case, region, |at| ring.fix(at).expect("the owner's view"), || ring.unfix());
        assert_eq!(mapping.read::<u64>(0), Ok(kept), "{case}");
    });
}

/// Direct I/O looks its pages up when it starts, so it is refused then.
#[test]
fn direct_transfers_from_and_to_a_disabled_region_are_refused() {
    support::start();
    let dir = std::env::temp_dir();
    let file = file_in(&dir.to_string_lossy(), PAGE);
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = nix::fcntl::open(again.as_str(), OFlag::O_RDWR | OFlag::O_DIRECT, nix::sys::stat::Mode::empty());
    let Ok(direct) = direct else {
        return skip("the directory for temporary files does not support O_DIRECT", false);
    };
    every_case_of_pages(|case, region, mapping| {
        let base = addr(mapping);
        assert_eq!(write_at_start(direct.as_fd(), base, PAGE), Ok(PAGE), "{case}");
        assert_eq!(read_from_start(direct.as_fd(), base, PAGE), Ok(PAGE), "{case}");
        region.disable().expect("it revokes");
        assert_eq!(write_at_start(direct.as_fd(), base, PAGE), Err(Errno::EFAULT), "{case}");
        assert_eq!(read_from_start(direct.as_fd(), base, PAGE), Err(Errno::EFAULT), "{case}");
        region.enable().expect("it comes back");
        assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{case}");
    });
}
