//! A message reaches the mapping that it is about, or none; a mapping whose `serve` panics refuses from then on.

pub(crate) mod hostile;

use super::*;
use crate::sys::Addr;
use crate::sys::page_size;
use hostile::{answer, decoded, hostile, monitor};
use proptest::prelude::*;

#[derive(Default)]
struct Panics {
    abandoned: AtomicBool,
}

impl Resolver for Panics {
    fn serve(&self, _: FaultMessage) {
        panic!("for the test");
    }

    fn abandon(&self) -> bool {
        self.abandoned.store(true, Ordering::Relaxed);
        true
    }
}

#[test]
fn a_mapping_whose_answer_panics_refuses_from_then_on() {
    let Some(monitor) = monitor(0) else { return };
    let [panics, other] = [(); 2].map(|()| Arc::new(Panics::default()));
    let page = page_size();
    for (at, served) in [(16, &panics), (17, &other)] {
        monitor.adopt(AddrRange::new(Addr(at * page), page), Arc::clone(served) as _).expect("it lives");
    }
    answer(&monitor, FaultMessage { addr: Addr(16 * page + 8), tid: 1, write: false });
    assert!(panics.abandoned.load(Ordering::Relaxed));
    assert!(!other.abandoned.load(Ordering::Relaxed));
    assert_eq!(monitor.stats().panics, 1);
}

#[test]
fn the_first_fault_is_timed_and_every_16th_after_it() {
    let Some(monitor) = monitor(0) else { return };
    for (faults, timed) in [(1, 1), (16, 1), (17, 2), (33, 3)] {
        while monitor.stats().faults < faults {
            answer(&monitor, FaultMessage { addr: Addr(16 * page_size()), tid: 1, write: false });
        }
        assert_eq!(monitor.stats().answer.count(), timed, "{faults} faults");
    }
}

/// Records the faults that it is asked to resolve.
#[derive(Default)]
struct Notes {
    served: Mutex<Vec<FaultMessage>>,
}

impl Resolver for Notes {
    fn serve(&self, fault: FaultMessage) {
        self.served.lock().push(fault);
    }

    fn abandon(&self) -> bool {
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// A mapping is never asked about an address outside of its range, nor after it was disowned.
    #[test]
    fn a_message_reaches_the_mapping_that_it_is_about_or_none(
        messages in prop::collection::vec(hostile(), 1..60), gone in 0usize..4, last in any::<bool>(),
    ) {
        let Some(monitor) = monitor(0) else { return Ok(()) };
        let page = page_size();
        // Two that touch, one far away, one at the end of all addresses.
        let end = usize::MAX - 4 * page + 1;
        let starts = [16 * page, 18 * page, 1 << 40, if last { end } else { 64 * page }];
        let ranges = starts.map(|start| AddrRange::new(Addr(start), if start == end { page } else { 2 * page }));
        let all = [(); 4].map(|()| Arc::new(Notes::default()));
        for (range, notes) in ranges.iter().zip(&all) {
            monitor.adopt(*range, Arc::clone(notes) as _).expect("it lives");
        }
        monitor.disown(ranges[gone]);
        for fault in messages.iter().filter_map(|message| decoded(message, &ranges)) {
            let before: Vec<usize> = all.iter().map(|notes| notes.served.lock().len()).collect();
            answer(&monitor, fault);
            for (at, notes) in all.iter().enumerate() {
                let served = notes.served.lock();
                let asked = served.len() - before[at];
                let its_own = at != gone && ranges[at].contains(fault.addr);
                prop_assert_eq!(asked, usize::from(its_own), "{:x?} of {:?}", fault, ranges[at]);
                prop_assert!(!its_own || served.last() == Some(&fault));
            }
        }
        prop_assert_eq!(monitor.stats().panics, 0);
    }
}
