//! A monitor's thread that goes where the faults are.
//!
//! Each fault wakes the monitor, and each answer the thread that faulted. If they sleep on two CPUs, both have to be
//! brought back from idle by an interrupt, which on a virtual machine takes tens of microseconds; on one CPU there are
//! two context switches instead. The kernel can't know (a woken thread might run for long, and beside its waker), but
//! here the waker always waits for the woken. So while one thread's faults come in quick succession, the monitor
//! binds itself to that thread's CPU, and it gives that up when they end.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Faults between two looks at where they come from, before and after it was found out. A look costs half of what a
/// fault does, and a move some ten faults.
const LOOK_EVERY: u32 = 8;
const LOOK_AGAIN: u32 = 128;

const THIS_THREAD: Pid = Pid::from_raw(0);

pub(super) struct Follower {
    /// Where this thread may run; `None`: it stays where the scheduler puts it.
    allowed: Option<CpuSet>,
    faults: u32,
    /// Whose faults they were at the last look, and what the kernel tells of it.
    thread: Option<(u32, File)>,
    bound_to: Option<usize>,
}

impl Follower {
    /// For the calling thread, if `follow`. Makes the calls that it will make later, so that a seccomp filter that kills for
    /// them does it now.
    pub(super) fn new(follow: bool) -> Self {
        let allowed =
            sched_getaffinity(THIS_THREAD).ok().filter(|all| follow && sched_setaffinity(THIS_THREAD, all).is_ok());
        Self { allowed, faults: 0, thread: None, bound_to: None }
    }

    /// Is there anything to [`release`](Self::release)?
    pub(super) fn is_following(&self) -> bool {
        self.thread.is_some() || self.bound_to.is_some()
    }

    /// One of a quick succession of faults was answered; `tid` is whose it was, 0 if unknown.
    pub(super) fn answered(&mut self, tid: u32) {
        self.faults += 1;
        let every = if self.bound_to.is_some() { LOOK_AGAIN } else { LOOK_EVERY };
        if self.faults < every || tid == 0 {
            return;
        }
        self.faults = 0;
        let Some(allowed) = &self.allowed else { return };
        match &self.thread {
            Some((known, stat)) if *known == tid => {
                let Some(cpu) = last_cpu(stat) else { return };
                let mut one = CpuSet::new();
                let there = self.bound_to == Some(cpu);
                if !there && allowed.is_set(cpu) == Ok(true) && one.set(cpu).is_ok() {
                    self.bound_to = sched_setaffinity(THIS_THREAD, &one).is_ok().then_some(cpu);
                }
            }
            // Several threads' faults: no place is right for all.
            _ => self.thread = File::open(format!("/proc/self/task/{tid}/stat")).ok().map(|stat| (tid, stat)),
        }
    }

    /// The succession has ended.
    pub(super) fn release(&mut self) {
        self.thread = None;
        self.faults = 0;
        if let (Some(_), Some(allowed)) = (self.bound_to.take(), &self.allowed) {
            let _ = sched_setaffinity(THIS_THREAD, allowed);
        }
    }
}

/// The CPU that a thread last ran on: field 39 of /proc/PID/task/TID/stat, see proc_pid_stat(5).
fn last_cpu(stat: &File) -> Option<usize> {
    let mut buffer = [0; 1024];
    let n = stat.read_at(&mut buffer, 0).ok()?;
    cpu_of(&buffer[..n])
}

fn cpu_of(stat: &[u8]) -> Option<usize> {
    // The second field is a name in parentheses, which may hold any bytes; the third follows its last one.
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::thread::current_tid;
    use proptest::prelude::*;

    fn here() -> usize {
        nix::sched::sched_getcpu().unwrap()
    }

    #[test]
    fn a_follower_goes_where_the_faults_come_from_and_is_free_again_afterwards() {
        let before = sched_getaffinity(THIS_THREAD).unwrap();
        let tid = u32::try_from(current_tid()).unwrap();
        let mut follower = Follower::new(true);
        for _ in 0..2 * LOOK_EVERY {
            follower.answered(tid);
        }
        assert!(follower.bound_to.is_some());
        let mut one = CpuSet::new();
        one.set(here()).unwrap();
        assert_eq!(sched_getaffinity(THIS_THREAD).unwrap(), one);
        follower.release();
        assert!(!follower.is_following());
        assert_eq!(sched_getaffinity(THIS_THREAD).unwrap(), before);
    }

    #[test]
    fn threads_that_take_turns_are_not_followed_nor_is_anyone_when_not_asked_to() {
        let tid = u32::try_from(current_tid()).unwrap();
        let mut follower = Follower::new(true);
        for round in 0..8 * LOOK_EVERY {
            follower.answered(if round / LOOK_EVERY % 2 == 0 { tid } else { 1 });
        }
        assert_eq!(follower.bound_to, None);
        let mut follower = Follower::new(false);
        for _ in 0..4 * LOOK_EVERY {
            follower.answered(tid);
        }
        assert_eq!(follower.bound_to, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_threads_cpu_is_told_whatever_its_name_is(name: Vec<u8>, cpu: usize) {
            let mut stat = b"4711 (".to_vec();
            stat.extend(name);
            stat.extend(b") R");
            stat.extend(" 7".repeat(39 - 4).into_bytes());
            stat.extend(format!(" {cpu} 0 0\n").into_bytes());
            prop_assert_eq!(cpu_of(&stat), Some(cpu));
        }

        #[test]
        fn no_text_upsets_the_reader(stat: Vec<u8>) {
            let _ = cpu_of(&stat);
        }
    }
}
