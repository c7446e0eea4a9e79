//! G1, G2, G3 and G7 where memory is short: swapped out, at a memory cgroup's limit, in a full tmpfs.

mod cgroup;
mod full;
mod limit;
mod reclaim;
mod swap;

use crate::support;
use crate::support::addr;
use crate::support::{child, skip};
use cgroup::Group;
use nix::libc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use swap::Swap;

const PAGE: usize = 4096;
/// How long a process is left waiting at its limit.
const AT_THE_LIMIT: Duration = Duration::from_millis(400);

/// What a test has written to a page.
fn stamp(page: usize) -> u64 {
    0x5ec2_0000_0000_0001 + ((page as u64) << 8)
}

/// Which pages of a process in a group can be taken from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Out {
    /// All, to a swap file.
    Swap,
    /// None of a region's: a fault beyond the limit waits until this process, a while later, lifts the limit.
    Nowhere,
}

/// Runs `body` in a process of its own, in a memory cgroup of its own.
fn in_group(out: Out, body: impl FnOnce(&Group)) {
    const GROUP: &str = "REVOCABLE_TEST_GROUP";
    if let Some(dir) = std::env::var_os(GROUP) {
        child::alone(|| {
            let group = Group::at(dir.into());
            group.join();
            body(&group);
        });
    }
    // Root of this machine may do this; root of a container may not.
    if !support::is_root() {
        return skip("making memory cgroups is root's", false);
    }
    let group = match Group::make() {
        Ok(group) => group,
        Err(why) => return skip(&format!("no memory cgroup: {why}"), false),
    };
    let swap = match out {
        Out::Nowhere if !group.wait_at_the_limit() => {
            return skip("at its limit a memory cgroup of version 2 kills a process; one of version 1 can wait", false);
        }
        Out::Nowhere => None,
        Out::Swap => match Swap::on() {
            Ok(swap) => Some(swap),
            Err(why) => return skip(&why, false),
        },
    };
    let dir = group.dir().to_str().expect("a path of our own making").to_owned();
    let (done, lifting) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        // Dropped by a panic too, which ends the thread.
        let done = done;
        if out == Out::Nowhere {
            scope.spawn(|| lift(&group, lifting));
        }
        let run = || child::alone_with(&[(GROUP, &dir)], || {});
        // At a limit the heap may not grow either, which is the end of a Rust program whatever it calls: no failure of what
        // is tested, and no success.
        // Nor is it one that the limit did not bite: the group had more to give back than it was taken to have, or the limit was
        // lifted before a slow machine came to the question.
        let tried_nothing = |ended: &child::Ended| {
            let heap = ended.by_signal() == Some(libc::SIGABRT) && ended.output.contains("memory allocation of");
            let says = |what| ended.output.contains(what);
            heap || says("until a fault waits for memory") || says("pinned beyond the limit")
        };
        let mut ended = run();
        for _ in 0..6 {
            if tried_nothing(&ended) {
                ended = run();
            }
        }
        drop((done, swap));
        ended.well();
    });
}

/// Gives the group all the memory it wants when it has been at its limit for a while.
fn lift(group: &Group, until: mpsc::Receiver<()>) {
    let mut free = Instant::now();
    while until.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Timeout) {
        if !group.is_at_the_limit() {
            free = Instant::now();
        }
        if free.elapsed() > AT_THE_LIMIT {
            group.no_limit();
        }
    }
}
