//! What a monitor makes of messages: real ones, late ones, and ones that no kernel would send.

use super::*;
use crate::sys::page_size;
use crate::sys::uffd::message;
use crate::{AccessError, MapOptions, Mapping, OnDisabled, Region, Strategy as Way};
use proptest::prelude::*;

fn monitor(threads: usize) -> Option<Monitor> {
    let monitor = if threads == 0 { Monitor::manual() } else { Monitor::with_threads(threads) };
    if monitor.is_err() {
        println!("SKIP: no userfaultfd");
        assert!(std::env::var_os("REVOCABLE_CI").is_none_or(|value| value != "1"), "this machine is to run every test");
    }
    monitor.ok()
}

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
        monitor.adopt(AddrRange::new(at * page, page), Arc::clone(served) as _).expect("it lives");
    }
    monitor.core.answer(FaultMessage { addr: 16 * page + 8, tid: 1, write: false });
    assert!(panics.abandoned.load(Ordering::Relaxed));
    assert!(!other.abandoned.load(Ordering::Relaxed));
    assert_eq!(monitor.stats().panics, 1);
}

/// Notes what it is asked to answer.
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

/// Where a message points to, seen from some mappings.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// So far from the start of one of them.
    Start(usize, isize),
    /// So far from its end.
    End(usize, isize),
    Anywhere(u64),
}

impl Target {
    fn address(self, ranges: &[AddrRange]) -> u64 {
        let near = |at: usize, by: isize| at.wrapping_add_signed(by) as u64;
        match self {
            Target::Start(which, by) => near(ranges[which % ranges.len()].addr, by),
            Target::End(which, by) => near(ranges[which % ranges.len()].end(), by),
            Target::Anywhere(address) => address,
        }
    }
}

fn target() -> impl Strategy<Value = Target> {
    let by = prop_oneof![-1isize..2, -9000isize..9000];
    prop_oneof![
        (0usize..4, by.clone()).prop_map(|(which, by)| Target::Start(which, by)),
        (0usize..4, by).prop_map(|(which, by)| Target::End(which, by)),
        any::<u64>().prop_map(Target::Anywhere),
    ]
}

/// A message about somewhere: a fault more often than not, with any flags, of one of a few threads.
fn hostile() -> impl Strategy<Value = (Target, [u8; message::SIZE], bool)> {
    (target(), message::tests::any_message(), any::<bool>())
}

fn decoded(
    (target, bytes, is_fault): &(Target, [u8; message::SIZE], bool),
    ranges: &[AddrRange],
) -> Option<FaultMessage> {
    let at = target.address(ranges);
    let fault = message::tests::fault(u64::from(bytes[8]), at, u32::from(bytes[24] % 4));
    // An event has its addresses elsewhere, and must be nothing, wherever they point to.
    let mut event = *bytes;
    event[8..16].copy_from_slice(&at.to_ne_bytes());
    event[16..24].copy_from_slice(&at.to_ne_bytes());
    message::faults(if *is_fault { &fault } else { &event }).next()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nobody is asked about what is not its own, least of all who is gone.
    #[test]
    fn a_message_reaches_the_mapping_that_it_is_about_or_none(
        messages in prop::collection::vec(hostile(), 1..60), gone in 0usize..4, last in any::<bool>(),
    ) {
        let Some(monitor) = monitor(0) else { return Ok(()) };
        let page = page_size();
        // Two that touch, one far away, one at the end of all addresses.
        let end = usize::MAX - 4 * page + 1;
        let starts = [16 * page, 18 * page, 1 << 40, if last { end } else { 64 * page }];
        let ranges = starts.map(|start| AddrRange::new(start, if start == end { page } else { 2 * page }));
        let all = [(); 4].map(|()| Arc::new(Notes::default()));
        for (range, notes) in ranges.iter().zip(&all) {
            monitor.adopt(*range, Arc::clone(notes) as _).expect("it lives");
        }
        monitor.disown(ranges[gone]);
        for fault in messages.iter().filter_map(|message| decoded(message, &ranges)) {
            let before: Vec<usize> = all.iter().map(|notes| notes.served.lock().len()).collect();
            monitor.core.answer(fault);
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

    /// Messages that no fault has caused open nothing, close nothing, and stop nobody.
    #[test]
    fn made_up_messages_change_nothing(
        rounds in prop::collection::vec((any::<bool>(), prop::collection::vec(hostile(), 0..40)), 1..6),
        way in prop_oneof![Just(Way::Zap), Just(Way::Detach), Just(Way::Replace)],
        policy in prop_oneof![Just(OnDisabled::Sigbus), Just(OnDisabled::AllOnes), Just(OnDisabled::Block)],
    ) {
        let Some(monitor) = monitor(1) else { return Ok(()) };
        let Ok(region) = Region::builder(4 * page_size()).strategy(way).monitor(monitor.clone()).build() else {
            return Ok(());
        };
        region.owner().write(8, 0x1122_3344_u32).expect("the owner writes");
        let options = MapOptions::new().on_disabled(policy);
        let mappings = [(); 2].map(|()| region.map(options.clone()).expect("it maps"));
        let dropped = region.map(options).expect("it maps");
        let ranges: Vec<_> = mappings.iter().chain([&dropped]).map(|m| m.served.view.range).collect();
        drop(dropped);
        for (disable, messages) in &rounds {
            let changed = if *disable { region.disable() } else { region.enable() };
            changed.expect("nobody is in the way");
            for fault in messages.iter().filter_map(|message| decoded(message, &ranges)) {
                monitor.core.answer(fault);
            }
            for mapping in &mappings {
                reached(mapping, region.is_enabled())?;
            }
        }
        region.enable().expect("it comes back");
        for mapping in &mappings {
            reached(mapping, true)?;
        }
        prop_assert_eq!(region.stats().degraded, 0);
        prop_assert_eq!(monitor.stats().panics, 0);
    }
}

/// Does a mapping say what its region's state asks for? By a register, which asks the memory first.
fn reached(mapping: &Mapping, enabled: bool) -> Result<(), TestCaseError> {
    let register = mapping.register::<u32>(8).expect("inside");
    match (enabled, mapping.on_disabled()) {
        (true, _) => prop_assert_eq!(register.read(), Ok(0x1122_3344)),
        (false, OnDisabled::AllOnes) => prop_assert_eq!(register.read(), Ok(u32::MAX)),
        (false, OnDisabled::Sigbus) => prop_assert_eq!(register.read(), Err(AccessError::Disabled { offset: 8 })),
        // It would wait.
        (false, OnDisabled::Block) => {
            prop_assert_eq!(mapping.try_read::<u32>(8), Err(AccessError::WouldBlock { offset: 8 }))
        }
    }
    Ok(())
}
