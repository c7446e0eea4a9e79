//! Each step of a withdrawal is needed: without it the hunt of G2, or the check of G1, fails. Needs `--cfg
//! revocable_inject`.
#![cfg(revocable_inject)]

use crate::g2_hunt::{hunt, storer};
use crate::log::Head;
use crate::peer::Peer;
use crate::support;
use crate::{PAGE, POLICIES, shared, withdraw, writable};
use revocable_mmio::{OnDisabled, inject};

/// The violation that the hunt finds with a step left out, in so many tries of so many rounds.
fn found(policy: OnDisabled, pages: usize, [tries, rounds]: [u64; 2], step: Option<&'static str>) -> Option<String> {
    for _ in 0..tries {
        inject::leave_out(step);
        let region = shared(pages * PAGE, policy);
        let mut peer = storer(&region, policy)?;
        // A page that was never stored to must be among them, for the step that is about those.
        peer.wait(Head::Made, 1);
        let found = hunt(&region, &mut peer, policy, rounds).err();
        inject::leave_out(None);
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Broken variants get a process of their own: the steps are left out of all regions of a process.
fn caught(policies: &[OnDisabled], step: &'static str, pages: usize, effort: [u64; 2]) {
    support::start();
    require!(crate::programs::program("storer").is_some(), "no C compiler");
    support::child::alone(|| {
        for policy in policies {
            assert_eq!(found(*policy, pages, [2, effort[1].min(50)], None), None, "{policy:?} as it should be");
            let found = found(*policy, pages, effort, Some(step));
            println!("{policy:?} without {step}: {}", found.expect("the hunt finds what is missing"));
        }
    })
    .well();
}

#[test]
fn holding_before_the_emptying() {
    caught(&POLICIES, "holding before emptying", 16, [5, 50]);
}

/// With ones, a store that is made during `disable()` may be lost: a peer cannot tell.
#[test]
fn copying_after_the_emptying() {
    caught(&[OnDisabled::Sigbus], "emptying before copying", 64, [10, 200]);
}

/// Pages that were only allocated are held as zeroes, which matters while a peer stores to them for the first time. With
/// ones as above.
#[test]
fn writing_the_windows_pages() {
    caught(&[OnDisabled::Sigbus], "writing the window's pages", 4096, [30, 1]);
}

#[test]
fn emptying() {
    caught(&POLICIES, "emptying", 16, [5, 50]);
}

/// Without a peer that stores, too.
#[test]
fn emptying_by_the_check_of_g1() {
    support::start();
    require!(crate::programs::program("peer").is_some(), "no C compiler");
    support::child::alone(|| {
        inject::leave_out(Some("emptying"));
        let region = shared(16 * PAGE, OnDisabled::Sigbus);
        let mut peer = Peer::new(writable(&region), 16 * PAGE).expect("there is a compiler");
        withdraw(&region);
        assert_eq!(peer.ask("load-all a"), "0 everywhere", "the window still has what it had");
        inject::leave_out(None);
    })
    .well();
}
