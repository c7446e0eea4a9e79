//! Load: 64 threads access two regions in every way, while the regions are disabled, enabled and reset, one by one and
//! as a group. All strategies, policies and backings are tested one after the other.
//!
//! Each access is judged by the region's state meanwhile (G1, G2), and each change of the group by both its members
//! (G8). Now and then every thread has to complete an access while the regions stay enabled (G5). Afterwards nothing is
//! left over. The time that `disable()` and `enable()` took is printed (`--nocapture`) and not checked: with 64 threads
//! on a few processors it is mostly the time until the scheduler runs a thread that holds a guard.
//!
//! `REVOCABLE_STRESS_SECONDS`: how long all of it takes together, about. The default is three seconds.

// Shared with the stress run of the example: the clock, the ledger, and the workers that judge accesses.
#[expect(dead_code, reason = "the example keeps books for more workers")]
#[path = "../../examples/revoke/stress/ledger.rs"]
mod ledger;
#[path = "../../examples/revoke/stress/random.rs"]
mod random;
#[path = "../../examples/revoke/stress/window.rs"]
mod window;
#[path = "../../examples/revoke/stress/worker.rs"]
mod worker;

mod changer;
mod hand;
mod rig;
mod table;

use crate::support::count::{Held, all_mappings, resident_bytes};
use crate::support::matrix::{Case, every_case};
use crate::support::watchdog::Watchdog;
use crate::support::{self, child};
use crate::support::{eventually, on_slow_machine, read_text, stress_time};
use parking_lot::Mutex;
use rig::Rig;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;
use table::Table;

/// The number of threads. An emulated machine would take minutes to run each of 64.
fn threads() -> usize {
    if on_slow_machine() { 16 } else { 64 }
}

/// The heap keeps some freed memory, and the stacks of 64 threads keep their deepest pages.
const MORE_RESIDENT: usize = 16 << 20;
/// The heap's own mappings split and grow a little.
const MORE_MAPPINGS: usize = 16;

/// The threads' next work. `None` ends them.
type Next = Mutex<Option<Arc<Rig>>>;

/// Everything that must not grow.
#[derive(Debug)]
struct Footprint {
    held: Held,
    threads: usize,
    mappings: usize,
    resident: usize,
}

impl Footprint {
    fn now() -> Self {
        let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        Self { held: Held::now(), threads, mappings: all_mappings(), resident: resident_bytes() }
    }
}

#[test]
fn sixty_four_threads_see_every_revocation_and_lose_nothing() {
    support::start();
    let patience = stress_time(3000) * 4 + Duration::from_secs(120);
    let ended = child::alone_for(patience, &[], || {
        let watchdog = Watchdog::new("load", Duration::from_secs(60));
        let cases = Mutex::new(0u32);
        every_case(|_| *cases.lock() += 1);
        let cases = cases.into_inner();
        assert!(cases > 0);
        let each = stress_time(3000) / cases;
        let (next, together) = (Next::default(), Barrier::new(threads() + 1));

        thread::scope(|scope| {
            for number in 0..threads() {
                let (next, together) = (&next, &together);
                let run = move || {
                    loop {
                        together.wait();
                        let Some(rig) = next.lock().clone() else { return };
                        rig.work(number);
                        drop(rig);
                        together.wait();
                    }
                };
                thread::Builder::new().name(format!("worker-{number}")).spawn_scoped(scope, run).expect("a thread");
            }
            let run = |case: &Case, time: Duration| {
                let rig = Arc::new(Rig::new(*case, threads()));
                *next.lock() = Some(Arc::clone(&rig));
                together.wait();
                let changes = rig.change(time, &watchdog);
                together.wait();
                *next.lock() = None;
                watchdog.beat();
                let violations = rig.violations();
                let row = table::Row::new(case, &rig, changes);
                drop(rig);
                (row, violations)
            };

            let mut found = Vec::new();
            let table = Mutex::new(Table::default());
            let pass = |time: Duration, found: &mut Vec<String>| {
                let rows = Mutex::new(Vec::new());
                every_case(|case| rows.lock().push(run(case, time)));
                for (row, violations) in rows.into_inner() {
                    table.lock().add(row);
                    found.extend(violations);
                }
            };
            // The first pass makes everything that is kept (stacks, the heap's arenas, pages of code).
            pass(each / 10, &mut found);
            *table.lock() = Table::default();
            let before = Footprint::now();
            pass(each * 9 / 10, &mut found);
            println!("{}", table.lock());
            eventually("the monitors' threads are gone", || Held::now() == before.held);
            let after = Footprint::now();
            println!("before {before:?}\nafter  {after:?}");

            // Lets the threads end, so that a failed check does not hang.
            together.wait();
            assert!(found.is_empty(), "{} violations, the first: {:#?}", found.len(), &found[..found.len().min(10)]);
            assert_eq!(after.threads, before.threads);
            assert!(after.mappings <= before.mappings + MORE_MAPPINGS, "{}", read_text("/proc/self/maps"));
            assert!(after.resident <= before.resident + MORE_RESIDENT, "{before:?} {after:?}");
        });
    });
    // Prints the table, and the violations.
    ended.output.lines().filter(|line| !line.starts_with("test ")).for_each(|line| println!("{line}"));
    ended.well();
}
