//! A real guest on /dev/kvm: G1 and G2 as the guest sees them, and the outcomes of its accesses.
//!
//! The machine decides which kind of exit a revoked page of a kept slot gives. The tests print which exits they got.

mod areas;
mod checks;
mod exits;
#[path = "../support/guest/mod.rs"]
mod guest;
mod instructions;
mod ioeventfds;
mod memslots;
mod moves;
mod waits;

use crate::support;
use guest::{BAR, BAR_LEN, Guest, Mode, PATTERN, Word, code, kvm_or_skip};
use kvm_ioctls::VcpuExit;
use revocable_mmio::kvm::{ExitError, ExitHandler, Handled, Memslots, Retention, WhenDisabled};
use revocable_mmio::{CancelToken, MapOptions, Mapping, OnDisabled, Region, Strategy};
use std::sync::Arc;

const STRATEGIES: [Strategy; 4] = [Strategy::Zap, Strategy::Detach, Strategy::Replace, Strategy::Withdraw];
/// Those with which the guest's accesses to a disabled region exit.
const RETENTIONS: [Retention; 2] = [Retention::Remove, Retention::Keep];
const SLOT: u32 = 1;

fn bar(strategy: Strategy) -> Region {
    let bar = Region::builder(BAR_LEN).strategy(strategy).build().expect("the strategy is there");
    for page in 0..BAR_LEN / 0x1000 {
        let value = PATTERN + 0x1000 * u32::try_from(page).expect("16 pages");
        bar.owner().write::<u32>(page * 0x1000 + 0x80, value).expect("the owner's view");
    }
    bar
}

/// With all-ones memory while the region is disabled.
fn ones(bar: &Region) -> Arc<Mapping> {
    Arc::new(bar.map(MapOptions::new().on_disabled(OnDisabled::AllOnes)).expect("it maps"))
}

fn mapping(bar: &Region) -> Arc<Mapping> {
    Arc::new(bar.map(MapOptions::new()).expect("it maps"))
}

/// A guest whose `ds` is the BAR, and the handler of its exits.
fn guest(kvm: &kvm_ioctls::Kvm, mode: Mode, code: &[u8], when: WhenDisabled) -> (Guest, Memslots, ExitHandler) {
    let guest = Guest::new(kvm, mode, code);
    guest.ram.set(Word::COUNT, 1);
    guest.ram.set(Word::AT, 0x80);
    let slots = Memslots::new(Arc::clone(&guest.vm));
    let exits = ExitHandler::new(slots.clone(), when, CancelToken::new());
    (guest, slots, exits)
}

/// Enters the guest until it writes to a port, and returns the number of exits before that.
fn one_round(guest: &mut Guest, exits: &mut ExitHandler) -> Result<u64, ExitError> {
    let mut count = 0;
    loop {
        match exits.handle(guest.vcpu.run())? {
            Handled::Reenter => count += 1,
            Handled::Other(Ok(VcpuExit::IoOut(0x10 | 0x11, _))) => return Ok(count),
            other => panic!("unexpected: {other:?}"),
        }
    }
}

fn load(guest: &mut Guest, exits: &mut ExitHandler) -> Result<u32, ExitError> {
    one_round(guest, exits).map(|_| guest.ram.get(Word::VALUE))
}

#[test]
fn a_refused_load_reads_all_ones_and_a_refused_store_is_dropped() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for (strategy, retention) in STRATEGIES.into_iter().flat_map(|s| RETENTIONS.map(|r| (s, r))) {
        let bar = bar(strategy);
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::STORES_16, WhenDisabled::UnsupportedRequest);
        let _slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        guest.ram.set(Word::STORED, 7);
        assert_eq!(one_round(&mut guest, &mut exits), Ok(0), "an enabled BAR costs no exit");
        assert_eq!(bar.owner().read::<u32>(0x80), Ok(7));
        bar.disable().expect("nothing is in the way");
        guest.ram.set(Word::STORED, 8);
        assert!(one_round(&mut guest, &mut exits).expect("every exit is handled") >= 1);
        assert_eq!(bar.owner().read::<u32>(0x80), Ok(7), "{strategy} {retention:?}: dropped");
        bar.enable().expect("it comes back");
        assert_eq!(bar.owner().read::<u32>(0x80), Ok(7), "{strategy} {retention:?}: dropped for good");
        one_round(&mut guest, &mut exits).expect("every exit is handled");
        assert_eq!(bar.owner().read::<u32>(0x80), Ok(8));
    }
}
