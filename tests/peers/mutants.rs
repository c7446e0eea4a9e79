//! Each step of a withdrawal is needed: without it the hunt of G2, or the check of G1, fails. Needs `--cfg
//! revocable_inject`.
#![cfg(revocable_inject)]

use crate::g2_hunt::{hunt, storer};
use crate::log::Head;
use crate::peer::Peer;
use crate::support;
use crate::{PAGE, POLICIES, SECRET, shared, withdraw, word, writable};
use revocable_mmio::{OnDisabled, inject};

/// The violation that the hunt finds with a step left out, in several tries.
fn found(policy: OnDisabled, pages: usize, step: Option<&'static str>) -> Option<String> {
    for _ in 0..5 {
        inject::leave_out(step);
        let region = shared(pages * PAGE, policy);
        let mut peer = storer(&region, policy)?;
        if step != Some("writing the window's pages") {
            peer.wait(Head::Passes, 2);
        }
        let found = hunt(&region, &mut peer, policy, 200).err();
        inject::leave_out(None);
        if found.is_some() || step.is_none() {
            return found;
        }
    }
    None
}

/// Broken variants get a process of their own: the steps are left out of all regions of a process.
fn caught(step: &'static str, pages: usize) {
    support::start();
    require!(crate::programs::program("storer").is_some(), "no C compiler");
    support::child::alone(|| {
        for policy in POLICIES {
            assert_eq!(found(policy, pages, None), None, "{policy:?} as it should be");
            let found = found(policy, pages, Some(step));
            println!("{policy:?} without {step}: {}", found.expect("the hunt finds what is missing"));
        }
    })
    .well();
}

#[test]
fn holding_before_the_emptying() {
    caught("holding before emptying", 16);
}

#[test]
fn copying_after_the_emptying() {
    caught("emptying before copying", 64);
}

/// Pages that were only allocated are held as zeroes.
#[test]
fn writing_the_windows_pages() {
    caught("writing the window's pages", 64);
}

#[test]
fn emptying() {
    caught("emptying", 16);
}

/// Without a peer that stores, too.
#[test]
fn emptying_by_the_check_of_g1() {
    support::start();
    require!(crate::programs::program("peer").is_some(), "no C compiler");
    support::child::alone(|| {
        for policy in POLICIES {
            inject::leave_out(Some("emptying"));
            let region = shared(16 * PAGE, policy);
            let mut peer = Peer::new(writable(&region), 16 * PAGE).expect("there is a compiler");
            withdraw(&region);
            region.enable().expect("it restores");
            withdraw(&region);
            assert_eq!(
                peer.ask("load-all a"),
                format!("{:#x} everywhere", word(SECRET)),
                "it reaches what it must not"
            );
            inject::leave_out(None);
        }
    })
    .well();
}
