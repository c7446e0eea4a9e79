//! Counts of objects that must not leak, and of processor time.

use nix::time::{ClockId, clock_gettime};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Descriptors, mappings and threads that this crate may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) fds: usize,
    pub(crate) mappings: usize,
    pub(crate) threads: usize,
}

impl Held {
    pub(crate) fn now() -> Self {
        // Descriptors of /proc files do not count: a thread that reads /proc/self/task keeps some open, and so does
        // this count.
        let fds = fds().split(' ').filter(|name| !name.starts_with("/proc/")).count();
        Self { fds, mappings: crate_mappings(), threads: crate_threads() }
    }
}

/// The crate's own threads, by their names. Not counted are the threads that the process keeps (the readers of
/// stand-ins' events) and the test harness's, which come and go.
fn crate_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let names = tasks.map(|task| super::read_text(task.path().join("comm")));
    names.filter(|name| name.starts_with("mmio-") && !name.starts_with("mmio-stand-in")).count()
}

fn entries(path: &str) -> usize {
    std::fs::read_dir(path).map_or(0, Iterator::count)
}

/// Mappings of files that this crate could have made: of memfds, of memory with the crate's name, of files on /dev/shm.
/// Anonymous memory does not count, because the heap and the stacks of threads come and go.
fn crate_mappings() -> usize {
    super::read_text("/proc/self/maps")
        .lines()
        .filter(|line| line.contains("memfd:") || line.contains("revocable") || line.contains("/dev/shm/"))
        .count()
}

/// All mappings of this process.
pub(crate) fn all_mappings() -> usize {
    super::read_text("/proc/self/maps").lines().count()
}

/// Bytes of this process's memory that are present.
pub(crate) fn resident_bytes() -> usize {
    let status = super::read_text("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: usize = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    kib << 10
}

/// Mappings of files with this in their name.
pub(crate) fn mappings_of(name: &str) -> usize {
    super::read_text("/proc/self/maps").lines().filter(|line| line.contains(name)).count()
}

/// User and kernel time of a thread of this process.
pub(crate) fn thread_time(tid: i32) -> Duration {
    // The clock that pthread_getcpuclockid(3) makes: CPUCLOCK_PERTHREAD and CPUCLOCK_SCHED of a thread.
    let clock = ClockId::from_raw(!tid << 3 | 4 | 2);
    clock_gettime(clock).expect("the thread lives").into()
}

/// How often a thread of this process has slept.
pub(crate) fn sleeps(tid: i32) -> u64 {
    let status = super::read_text(format!("/proc/self/task/{tid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok()).expect("the thread lives")
}

/// The names of the open descriptors, for the messages of failed counts.
pub(crate) fn fds() -> String {
    let fds = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let names = fds.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    names.map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// The descriptors that are userfaultfds.
pub(crate) fn userfaultfds() -> Vec<i32> {
    let fds = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    fds.filter(|entry| {
        std::fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().contains("[userfaultfd]"))
    })
    .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
    .collect()
}

/// How many of the pages of a range are in this process's page tables, or were and are swapped out: the entries of
/// /proc/self/pagemap say that in their highest bits. Not by smaps: the kernel merges neighbouring stand-ins into one
/// mapping there.
pub(crate) fn resident(from: usize, len: usize) -> usize {
    const ENTRY: usize = size_of::<u64>();
    let page = super::page_size();
    let mut entries = vec![0; len / page * ENTRY];
    let pagemap = std::fs::File::open("/proc/self/pagemap").expect("there is /proc");
    pagemap.read_exact_at(&mut entries, (from / page * ENTRY) as u64).expect("it has an entry for each page");
    entries.chunks(ENTRY).filter(|entry| entry[ENTRY - 1] >> 6 != 0).count()
}

/// How much of the mapping in which `addr` lies is mapped by huge pages of shared memory, in KiB.
pub(crate) fn huge(addr: usize) -> usize {
    let smaps = super::read_text("/proc/self/smaps");
    let is_other = |line: &&str| addresses(line).is_none_or(|mapped| !mapped.contains(&addr));
    let its_lines = smaps.lines().skip_while(is_other);
    let kib = its_lines.into_iter().find_map(|line| line.strip_prefix("ShmemPmdMapped:"));
    let kib = kib.and_then(|kib| kib.trim().trim_end_matches(" kB").parse().ok());
    kib.unwrap_or_else(|| panic!("smaps has nothing of {addr:x}"))
}

/// The addresses at the start of a line of /proc/PID/maps; `None` for the other lines of smaps.
pub(crate) fn addresses(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}
