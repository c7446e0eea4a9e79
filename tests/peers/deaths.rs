//! The owner's process is killed: what its peers have after that.

use crate::g2_hunt::storer;
use crate::log::Head;
use crate::peer::{Control, Peer};
use crate::support::{self, child};
use crate::{BEFORE, LEN, PAGE, POLICIES, SECRET, refused, shared, withdraw, word, writable};
use revocable_mmio::OnDisabled;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

/// In a process of its own: a policy's index and what to do. It is the owner then.
const OWNER: &str = "REVOCABLE_TEST_OWNER";

/// Runs `body` with an owner in another process, which hands a descriptor to the peer, does what `how` says, and then
/// waits to be killed. In the owner's process it does not return.
fn with_owner(how: &str, body: impl Fn(&mut Peer, &mut Owner, OnDisabled)) {
    support::start();
    if let Ok(asked) = std::env::var(OWNER) {
        own(&asked);
    }
    for (index, policy) in POLICIES.into_iter().enumerate() {
        let Some(mut peer) = Peer::without_mapping(Stdio::null(), LEN) else { return };
        let mut command = child::this_test();
        command.env(OWNER, format!("{index} {how}")).stdin(peer.control.share()).stdout(Stdio::piped());
        let mut owner = Owner(command.spawn().expect("it starts"));
        let said = BufReader::new(owner.0.stdout.take().expect("piped")).lines();
        let ready = said.map_while(Result::ok).any(|line| line.contains("the owner is ready"));
        assert!(ready, "the owner has ended");
        body(&mut peer, &mut owner, policy);
    }
}

struct Owner(Child);

impl Owner {
    fn kill(&mut self) {
        self.0.kill().expect("a child of ours");
        self.0.wait().expect("a child of ours");
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn own(asked: &str) -> ! {
    let (index, how) = asked.split_once(' ').expect("two words");
    let policy = POLICIES[index.parse::<usize>().expect("an index")];
    let region = shared(LEN, policy);
    region.owner().fill(0, BEFORE, LEN).expect("it has memory");
    let socket = std::io::stdin().as_fd().try_clone_to_owned().expect("a descriptor");
    let mut peer = Control::new(UnixStream::from(socket));
    let window = peer.send(writable(&region));
    assert_eq!(peer.ask(&format!("map a {window}")), "ok");
    assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(BEFORE)));
    if how == "disabled" {
        withdraw(&region);
    }
    println!("the owner is ready");
    // Long after the test.
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while std::time::Instant::now() < end {
        if how == "toggling" {
            withdraw(&region);
            region.owner().fill(0, BEFORE, LEN).expect("it has memory");
            region.enable().expect("it restores");
        } else {
            thread::sleep(Duration::from_millis(10));
        }
    }
    std::process::exit(1);
}

#[test]
fn an_owner_killed_while_disabled_leaves_nothing_to_reach() {
    with_owner("disabled", |peer, owner, policy| {
        assert_eq!(peer.ask("load-all a"), refused(policy));
        owner.kill();
        assert_eq!(peer.ask("load-all a"), refused(policy));
        let stored = if policy == OnDisabled::AllOnes { "ok" } else { "SIGBUS BUS_ADRERR at 0x2808" };
        assert_eq!(peer.ask("store a 0x2808 0x77"), stored);
        assert_eq!(peer.ask("map b 3"), "ok");
        assert!(!peer.ask("load-all b").contains(&format!("{:x}", word(SECRET))));
    });
}

/// The window is memory like any other: who has it mapped keeps it.
#[test]
fn an_owner_killed_while_enabled_leaves_the_window() {
    with_owner("enabled", |peer, owner, _| {
        owner.kill();
        assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(BEFORE)));
        assert_eq!(peer.ask("store a 0x2808 0x77"), "ok");
        assert_eq!(peer.ask("load a 0x2808"), "0x77");
    });
}

/// Dropped in either state, with a peer that stores without pause.
#[test]
fn a_dropped_region_leaves_nothing_to_reach() {
    support::start();
    for policy in POLICIES {
        for enabled in [true, false] {
            let region = shared(LEN, policy);
            region.owner().fill(0, SECRET, LEN).expect("it has memory");
            let Some(mut peer) = Peer::new(writable(&region), LEN) else { return };
            let Some(mut storer) = storer(&region, policy) else { return };
            if !enabled {
                region.disable().expect("it revokes");
            }
            drop(region);
            storer.wait(Head::Passes, 2);
            for page in 0..LEN / PAGE {
                let got = peer.ask(&format!("load a {:#x}", page * PAGE + 0x800));
                let refused = if policy == OnDisabled::AllOnes {
                    format!("{:#x}", u64::MAX)
                } else {
                    format!("SIGBUS BUS_ADRERR at {:#x}", page * PAGE + 0x800)
                };
                assert_eq!(got, refused, "{policy:?}, dropped while enabled: {enabled}");
            }
        }
    }
}

/// The content is reachable whole, in part, or not at all, and nothing of what it was while withdrawn.
#[test]
fn an_owner_killed_amid_changes_leaves_no_withdrawn_content() {
    for pause in [1, 3, 7] {
        with_owner("toggling", |peer, owner, _| {
            thread::sleep(Duration::from_millis(pause));
            owner.kill();
            for page in 0..LEN / PAGE {
                let got = peer.ask(&format!("load a {:#x}", page * PAGE));
                assert_ne!(got, format!("{:#x}", word(SECRET)));
            }
        });
    }
}
