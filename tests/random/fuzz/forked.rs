//! Forked children: a child that a sequence forks, and a child in which a sequence runs because it changes its process.
//!
//! UNSAFETY: fork(2), and drops of bitwise copies in a child that ends without using the originals.
#![expect(unsafe_code, reason = "forks")]

use super::model::SECRET;
use super::op::Op;
use super::run;
use crate::support::forking;
use crate::support::raw;
use crate::support::watchdog::threads_of;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use revocable_mmio::fault::{FaultFlags, NoLock};
use revocable_mmio::{MapOptions, Mapping, OnDisabled, Region, RevokeError, Strategy};
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than any operation or the end of a process takes.
const TOO_LONG: Duration = Duration::from_secs(15);

/// Uses all inherited handles in a child, in every way. No use may reach the memory, or change anything of the parent.
///
/// # Errors
/// The first use that succeeded.
pub(super) fn child<'a>(
    regions: impl Iterator<Item = &'a Region>,
    mappings: impl Iterator<Item = &'a Arc<Mapping>>,
) -> Result<(), String> {
    let (regions, mappings): (Vec<_>, Vec<_>) = (regions.collect(), mappings.collect());
    let patience = u32::try_from(crate::support::patience(Duration::from_secs(30)).as_secs()).unwrap_or(30);
    let code = forking::exit_code(|| {
        // Kills the child if it hangs.
        nix::unistd::alarm::set(patience);
        inherited(&regions, &mappings).or_else(|| own().map(|at| 50 + at)).unwrap_or(0)
    });
    match code {
        0 => Ok(()),
        code => Err(format!("a forked child ended with {code}")),
    }
}

/// The first use that succeeded, by number.
fn inherited(regions: &[&Region], mappings: &[&Arc<Mapping>]) -> Option<i32> {
    for mapping in mappings {
        let base = mapping.as_ptr().expose_provenance();
        // The parent has put the secret at the start of every region.
        if mapping.offset() == 0 && (raw::load64(base) == Ok(SECRET) || mapping.try_read(0) == Ok(SECRET)) {
            return Some(1);
        }
        let _ = mapping.fault(0, FaultFlags::NOWAIT, &mut NoLock::default());
        let _ = mapping.protect(0..mapping.len(), revocable_mmio::Prot::Read);
        if mapping.try_access().is_ok() && mapping.try_write(0, 1u64).is_ok() {
            return Some(2);
        }
    }
    for region in regions {
        let _ = region.fault(0, FaultFlags::NOWAIT, &mut NoLock::default());
        let changes = [region.disable(), region.enable(), region.try_reset(|_| true), region.try_disable()];
        // For the holder of a guard, an enabled region stays enabled.
        if !changes.into_iter().all(|changed| matches!(changed, Ok(false) | Err(RevokeError::Forked))) {
            return Some(3);
        }
        if region.map(MapOptions::new()).is_ok() {
            return Some(4);
        }
    }
    for mapping in mappings {
        // SAFETY: the child exits without using or dropping the original.
        drop(unsafe { std::ptr::read(&raw const ***mapping) });
    }
    for region in regions {
        // SAFETY: as above.
        drop(unsafe { std::ptr::read(&raw const **region) });
    }
    None
}

/// Regions that the child makes itself work like any others.
fn own() -> Option<i32> {
    for (number, strategy) in (0..).zip([Strategy::Zap, Strategy::Detach, Strategy::Replace, Strategy::Withdraw]) {
        let Ok(region) = Region::builder(2 * crate::support::page_size()).strategy(strategy).build() else { continue };
        for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes] {
            let Ok(mapping) = region.map(MapOptions::new().on_disabled(policy)) else { return Some(10 * number + 1) };
            let base = mapping.as_ptr().expose_provenance();
            if raw::store64(base, 7).is_err() || mapping.read::<u64>(0) != Ok(7) {
                return Some(10 * number + 2);
            }
            if !matches!(region.disable(), Ok(true)) || raw::load64(base) == Ok(7) || mapping.read::<u64>(0) == Ok(7) {
                return Some(10 * number + 3);
            }
            if !matches!(region.enable(), Ok(true)) || region.reset(|_| ()).is_err() || raw::load64(base) != Ok(7) {
                return Some(10 * number + 4);
            }
        }
    }
    None
}

/// Runs a sequence in a process of its own, which has no other threads than those that it starts.
///
/// No other thread of the calling process may hold a lock.
///
/// # Errors
/// As [`run::run`], or that the process hangs, or how it ended.
pub(crate) fn run(history: &[Op]) -> Result<(), String> {
    let (out, into) = nix::unistd::pipe().map_err(|e| format!("pipe: {e}"))?;
    // SAFETY: the contract above; the child ends by `_exit`.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(format!("fork: {}", Errno::last()));
    }
    if pid == 0 {
        drop(out);
        let mut steps = std::fs::File::from(into);
        // A byte for each operation that is begun.
        let step = || drop(steps.write_all(&[0]));
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run::run_telling(history, step)));
        let why = match ended {
            Ok(Ok(())) => String::new(),
            Ok(Err(why)) => why,
            Err(panic) => panic.downcast::<String>().map_or("it panicked".to_owned(), |why| format!("panic: {why}")),
        };
        // This descriptor is left whatever has become of descriptors and limits.
        let _ = steps.write_all(why.as_bytes());
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(i32::from(!why.is_empty())) };
    }
    drop(into);
    let told = listen(out.as_fd());
    let threads = told.as_ref().err().map_or(String::new(), |_| threads_of(&pid.to_string()));
    if told.is_err() {
        // SAFETY: a child of ours, which is waited for below.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let mut status = 0;
    // SAFETY: waits for a child of ours; the status is a live integer.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 && Errno::last() == Errno::EINTR {}
    match told {
        Err(begun) => {
            let last = history.get(begun.wrapping_sub(1)).map_or("its end".to_owned(), super::text::line);
            Err(format!("operation {begun} does not end within {TOO_LONG:?}: {last}\n{threads}"))
        }
        Ok((_, why)) if !why.is_empty() => Err(why),
        Ok(_) if status == 0 => Ok(()),
        Ok((begun, _)) => Err(format!("its process ended with status {status:#x} in operation {begun}")),
    }
}

/// Reads until the other side ends. Returns the number of operations that were begun, and the message. An error if the
/// end does not come.
fn listen(out: std::os::fd::BorrowedFd<'_>) -> Result<(usize, String), usize> {
    let (mut begun, mut text, mut since) = (0, Vec::new(), Instant::now());
    while since.elapsed() < crate::support::patience(TOO_LONG) {
        let mut fds = [PollFd::new(out, PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(100_u8)).is_ok_and(|ready| ready > 0) {
            let mut some = [0; 4096];
            let read = nix::unistd::read(out, &mut some).unwrap_or(0);
            if read == 0 {
                return Ok((begun, String::from_utf8_lossy(&text).into_owned()));
            }
            since = Instant::now();
            for byte in &some[..read] {
                match byte {
                    0 => begun += 1,
                    byte => text.push(*byte),
                }
            }
        }
    }
    Err(begun)
}
