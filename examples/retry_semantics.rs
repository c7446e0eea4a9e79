//! What each set of fault flags comes to at a region that is busy (a reset that takes long), under each of the rules that
//! the review of the vfio-pci patch compared. Every line is the result of real faults by real threads. Needs Linux and no
//! privilege; takes a second.
//!
//! `cargo run --example retry_semantics`

use revocable_mmio::fault::{CallerLock, FaultFlags, Outcome, Rules};
use revocable_mmio::{Caller, CancelToken, Region};
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

const RULES: [(&str, Rules); 5] = [
    ("the patch, v1", Rules::PATCH_V1),
    ("the patch, v2 and v3 (merged: Linux 5.8)", Rules::PATCH_V2),
    ("the review's proposal", Rules::REVIEW),
    ("the kernel's page lock (__folio_lock_or_retry)", Rules::PAGE_LOCK),
    ("this crate", Rules::CRATE),
];

/// Who faults, and with which flags.
const CALLERS: [(&str, FaultFlags); 6] = [
    ("ALLOW_RETRY|NOWAIT", FaultFlags::NOWAIT),
    ("ALLOW_RETRY|NOWAIT|TRIED", FaultFlags::NOWAIT.union(FaultFlags::TRIED)),
    ("ALLOW_RETRY|KILLABLE", FaultFlags::WAIT),
    ("ALLOW_RETRY|KILLABLE|TRIED", FaultFlags::WAIT.union(FaultFlags::TRIED)),
    ("KILLABLE", FaultFlags::KILLABLE),
    ("none", FaultFlags::empty()),
];

/// The lock that a caller holds across its fault: mmap_lock in the kernel.
struct Lock<'a>(&'a AtomicBool);

impl CallerLock for Lock<'_> {
    fn release(&mut self) {
        self.0.store(false, SeqCst);
    }

    fn acquire(&mut self) {
        self.0.store(true, SeqCst);
    }

    fn is_held(&self) -> bool {
        self.0.load(SeqCst)
    }
}

const SETTLE: Duration = Duration::from_millis(150); // a thread that has not finished by then waits

/// How a fault ended, and the caller's lock then.
fn told((outcome, held): (Outcome, bool)) -> String {
    let outcome = match outcome {
        Outcome::Mapped => "goes on",
        Outcome::Retry { .. } => "RETRY",
        Outcome::Sigbus => "SIGBUS",
        Outcome::Killed => "killed",
        _ => "an error",
    };
    format!("{outcome}, lock {}", if held { "held" } else { "released" })
}

fn main() -> Result<(), Box<dyn Error>> {
    let region = Region::builder(64 << 10).build()?;
    let ((busy, is_busy), (end, ended)) = (mpsc::channel(), mpsc::channel::<()>());
    // Of each set of flags one fault that is left alone, and one whose caller is killed while it waits.
    let cases: Vec<_> = RULES
        .iter()
        .flat_map(|(_, rules)| {
            CALLERS.iter().flat_map(move |(_, flags)| [(*rules, *flags, false), (*rules, *flags, true)])
        })
        .collect();
    let locks: Vec<_> = cases.iter().map(|_| AtomicBool::new(true)).collect();
    let (never, kill) = (CancelToken::new(), CancelToken::new());

    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let region = &region;
        scope.spawn(move || {
            region.reset(|_| {
                let _ = busy.send(());
                let _ = ended.recv();
            })
        });
        is_busy.recv()?;
        let faults: Vec<_> = (cases.iter().zip(&locks))
            .map(|(&(rules, flags, killed), lock)| {
                let mut caller = Caller::new(flags).cancel(if killed { &kill } else { &never });
                caller.rules = rules;
                scope.spawn(move || region.fault(0, caller, &mut Lock(lock)))
            })
            .collect();
        thread::sleep(SETTLE);
        let waits: Vec<_> =
            faults.iter().zip(&locks).map(|(f, lock)| (!f.is_finished()).then(|| lock.load(SeqCst))).collect();
        kill.cancel();
        thread::sleep(SETTLE);
        drop(end);
        let mut outcomes = Vec::new();
        for (fault, lock) in faults.into_iter().zip(&locks) {
            outcomes.push((fault.join().map_err(|_| "a panic")??, lock.load(SeqCst)));
        }
        let pairs: Vec<_> = outcomes.chunks(2).zip(waits.chunks(2)).collect();
        for ((name, _), lines) in RULES.iter().zip(pairs.chunks(CALLERS.len())) {
            println!("{name}");
            for ((flags, _), (outcomes, waits)) in CALLERS.iter().zip(lines) {
                let wait = match waits[0] {
                    None => "does not wait",
                    Some(true) => "waits, lock held",
                    Some(false) => "waits, lock released",
                };
                let [left_alone, killed] = [outcomes[0], outcomes[1]].map(told);
                let killed = if killed == left_alone { String::new() } else { format!("if killed: {killed}") };
                println!("{}", format!("  {flags:<27} {wait:<21} {left_alone:<21} {killed}").trim_end());
            }
        }
        Ok(())
    })
}
