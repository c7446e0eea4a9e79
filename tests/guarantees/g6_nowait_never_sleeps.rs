//! G6: NOWAIT accesses and `try_` verbs never sleep, even in a busy region. The reset here ends after they have returned, and not
//! before: one that waited for it would hang.

use crate::support::matrix::every_case;
use crate::support::watchdog::Watchdog;
use crate::support::{self, busy};
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{AccessError, PinError, ResetGroup, RevokeError};
use std::thread;
use std::time::{Duration, Instant};

const AT_ONCE: Duration = Duration::from_millis(200);

#[test]
fn no_try_verb_waits_for_a_reset() {
    support::start();
    let _watchdog = Watchdog::new("verbs that do not wait", Duration::from_secs(60));
    let threads = std::cell::RefCell::new(Vec::new());
    every_case(|case| {
        if case.memory == support::matrix::Memory::Huge {
            return; // the huge pages are given back before the threads end
        }
        let region = case.region(1);
        let mapping = case.map(&region);
        let other = case.region(1);
        let case = *case;
        let run = move || {
            // The reset lasts until this closure has returned.
            busy(&region, |_end| {
                let since = Instant::now();
                assert!(matches!(region.try_disable(), Err(RevokeError::Busy(_))), "{case}");
                assert!(matches!(region.try_enable(), Err(RevokeError::Busy(_))), "{case}");
                assert!(matches!(region.try_reset(|_| ()), Err(RevokeError::Busy(_))), "{case}");
                assert_eq!(mapping.try_read::<u64>(0), Err(AccessError::WouldBlock { offset: 0 }), "{case}");
                assert_eq!(mapping.try_write(0, 1u64), Err(AccessError::WouldBlock { offset: 0 }), "{case}");
                assert!(matches!(mapping.try_access(), Err(AccessError::WouldBlock { .. })), "{case}");
                assert!(matches!(region.pin(0..8, FaultFlags::NOWAIT), Err(PinError::WouldBlock)), "{case}");
                let group = ResetGroup::new([&other, &region]);
                let busy = group.try_disable().expect_err("a member is being reset");
                assert!(busy.is_busy(), "{case}: {busy}");
                // A group waits for readers for at most 100 ms; a reset is no reader.
                assert!(since.elapsed() < support::patience(AT_ONCE), "{case}: {:?}", since.elapsed());
                assert!(other.is_enabled(), "{case}: together or not at all");
            });
        };
        threads.borrow_mut().push(thread::spawn(run));
    });
    for thread in threads.into_inner() {
        thread.join().expect("no panic");
    }
}
