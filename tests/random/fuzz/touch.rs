//! A second thread accesses a region's memory all the time, while a sequence of changes runs. The result of each access
//! depends on which of the two comes first, so only claims that hold in any order are checked:
//!
//! - G1: while the region is disabled for sure, no load returns content of the memory, and no store reaches it.
//! - G2: after a store that succeeded the memory holds its value, through every change since. After one that failed it
//!   holds the value before.

use super::op::{How, Verb};
use crate::support::matrix::Case;
use crate::support::raw;
use revocable_mmio::{MapOptions, Mapping, OnDisabled, Region, ResetGroup};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Set by the owner while the region is disabled, and taken back before it is enabled.
const STAMP: u64 = 0xdead_dead_dead_dead;

/// The second thread's way of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hand {
    Accessor,
    Raw,
    Bulk,
    Atomic,
    /// process_vm_readv, pread.
    Call,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Disable(How),
    Enable(How),
    Reset(How),
    Group(Verb),
    /// Maps the region once more, and drops the previous such mapping.
    Remap,
    Sleep,
}

/// The offset to which the hand stores numbers that count up. The owner's stamp is in another page.
const COUNTER: usize = 0;
fn stamp_at(case: &Case) -> usize {
    case.page() + 64
}

/// The state that the hand and the changer share.
#[derive(Default)]
struct Shared {
    end: AtomicBool,
    /// Odd while the region is disabled for sure.
    window: AtomicU64,
    /// The counter when the window opened.
    kept: AtomicU64,
}

impl Shared {
    fn window(&self) -> Option<u64> {
        Some(self.window.load(Ordering::SeqCst)).filter(|n| n % 2 == 1)
    }
}

/// Runs `changes` while one hand accesses the region.
///
/// # Errors
/// The first violation.
pub(crate) fn run(case: &Case, hand: Hand, changes: &[Change]) -> Result<(), String> {
    let region = Arc::new(case.builder(2).build().map_err(|e| e.to_string())?);
    let mapping = Arc::new(region.map(case.options()).map_err(|e| e.to_string())?);
    let shared = Arc::new(Shared::default());
    let thread = start(case, hand, &mapping, &shared);
    let done = changes.iter().try_for_each(|change| apply(case, &region, &shared, *change));
    // Before the join, since the hand may wait for the region.
    let closed = close_window(case, &region, &shared);
    let enabled = region.enable().map_err(|e| e.to_string());
    shared.end.store(true, Ordering::SeqCst);
    let last = thread.join().map_err(|_| "the hand panicked".to_owned())?;
    done.and(closed).and(enabled.map(drop))?;
    let (now, last) = (region.owner().read::<u64>(COUNTER).map_err(|e| e.to_string())?, last?);
    if now == last { Ok(()) } else { Err(format!("the memory ends with {now:#x}, the last store was {last:#x}")) }
}

fn apply(case: &Case, region: &Region, shared: &Shared, change: Change) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| format!("{case} {change:?}: {e}");
    let busy = |e: &revocable_mmio::RevokeError| matches!(e, revocable_mmio::RevokeError::Busy(_));
    match change {
        Change::Disable(how) => {
            let disabled = match how {
                How::Wait => region.disable(),
                How::Timeout => region.disable_timeout(Duration::from_secs(30)),
                How::Try => region.try_disable(),
            };
            match disabled {
                Ok(true) => open_window(case, region, shared),
                Ok(false) => {}
                // An access of the hand is under way.
                Err(e) if busy(&e) => {}
                Err(e) => return Err(text(&e)),
            }
        }
        Change::Enable(how) => {
            close_window(case, region, shared)?;
            match if how == How::Try { region.try_enable() } else { region.enable() } {
                Ok(_) => {}
                // The region stays disabled, but outside of a window, so accesses are not judged.
                Err(e) if busy(&e) => {}
                Err(e) => return Err(text(&e)),
            }
        }
        Change::Reset(how) => {
            let hold = |_: &revocable_mmio::OwnerView| thread::sleep(Duration::from_micros(50));
            match if how == How::Try { region.try_reset(hold) } else { region.reset(hold) } {
                Ok(()) => {}
                Err(e) if busy(&e) => {}
                Err(e) => return Err(text(&e)),
            }
        }
        Change::Group(verb) => {
            let group = ResetGroup::new([region]);
            if verb == Verb::Enable {
                close_window(case, region, shared)?;
            }
            let was = region.is_enabled();
            let done = match verb {
                Verb::Disable => group.try_disable().map(drop),
                Verb::Enable => group.try_enable().map(drop),
                Verb::Reset => group.try_reset(|_| ()),
            };
            match done {
                Ok(()) if verb == Verb::Disable && was => open_window(case, region, shared),
                Ok(()) => {}
                Err(e) if e.is_busy() => {}
                Err(e) => return Err(text(&e)),
            }
        }
        Change::Remap => {
            let half = region.map(MapOptions::new().len(case.page()).on_disabled(case.policy));
            drop(half.map_err(|e| text(&e))?);
        }
        Change::Sleep => thread::sleep(Duration::from_micros(200)),
    }
    check_window(region, shared).map_err(|e| text(&e))
}

/// From here on the region is disabled for sure.
fn open_window(case: &Case, region: &Region, shared: &Shared) {
    if shared.window().is_none() {
        shared.kept.store(region.owner().read(COUNTER).expect("the owner reads"), Ordering::SeqCst);
        region.owner().write(stamp_at(case), STAMP).expect("the owner writes");
        shared.window.fetch_add(1, Ordering::SeqCst);
    }
}

/// Must be called before anything that enables the region.
fn close_window(case: &Case, region: &Region, shared: &Shared) -> Result<(), String> {
    let checked = check_window(region, shared);
    if shared.window().is_some() {
        shared.window.fetch_add(1, Ordering::SeqCst);
        region.owner().write(stamp_at(case), 0u64).expect("the owner writes");
    }
    checked
}

fn check_window(region: &Region, shared: &Shared) -> Result<(), String> {
    let now: u64 = region.owner().read(COUNTER).map_err(|e| e.to_string())?;
    let kept = shared.kept.load(Ordering::SeqCst);
    match shared.window() {
        Some(_) if now != kept => Err(format!("a store of {now:#x} got into the disabled region, which had {kept:#x}")),
        _ => Ok(()),
    }
}

fn start(case: &Case, hand: Hand, mapping: &Arc<Mapping>, shared: &Arc<Shared>) -> JoinHandle<Result<u64, String>> {
    let (stamp_at, mapping, shared) = (stamp_at(case), Arc::clone(mapping), Arc::clone(shared));
    thread::spawn(move || {
        let ones = mapping.on_disabled() == OnDisabled::AllOnes;
        let mut last = 0u64;
        while !shared.end.load(Ordering::SeqCst) {
            let before = shared.window();
            let (stamp, counter) = (load(hand, &mapping, stamp_at), load(hand, &mapping, COUNTER));
            let inside = before.is_some() && before == shared.window();
            for (loaded, should) in [(stamp, 0), (counter, last)] {
                match loaded {
                    Some(u64::MAX) if ones => {}
                    Some(value) if inside => return Err(format!("it read {value:#x} from a disabled region")),
                    Some(value) if value != should => return Err(format!("it read {value:#x}, not {should:#x}")),
                    _ => {}
                }
            }
            // Under AllOnes a store succeeds even if it is lost.
            if !ones {
                let before = shared.window();
                let stored = store(hand, &mapping, last + 1);
                let inside = before.is_some() && before == shared.window();
                match stored {
                    true if inside => return Err(format!("it stored {:#x} into a disabled region", last + 1)),
                    true => last += 1,
                    false => {}
                }
            }
        }
        Ok(last)
    })
}

fn load(hand: Hand, mapping: &Mapping, at: usize) -> Option<u64> {
    let addr = mapping.as_ptr().expose_provenance() + at;
    let mut bytes = [0; 8];
    match hand {
        Hand::Accessor | Hand::Atomic => mapping.read(at).ok(),
        Hand::Raw => raw::load64(addr).ok(),
        Hand::Bulk => mapping.read_slice(at, &mut bytes).ok().map(|()| u64::from_le_bytes(bytes)),
        Hand::Call => {
            let read = raw::read_process(nix::unistd::getpid().as_raw(), addr, &mut bytes);
            read.ok().map(|_| u64::from_le_bytes(bytes))
        }
    }
}

fn store(hand: Hand, mapping: &Mapping, value: u64) -> bool {
    let addr = mapping.as_ptr().expose_provenance();
    match hand {
        Hand::Accessor => mapping.write(0, value).is_ok(),
        Hand::Raw => raw::store64(addr, value).is_ok(),
        Hand::Bulk => mapping.write_slice(0, &value.to_le_bytes()).is_ok(),
        Hand::Atomic => mapping.swap(0, value).is_ok(),
        Hand::Call => raw::read_into(addr, &value.to_le_bytes()).is_ok(),
    }
}
