//! A memory cgroup of a test's own, of version 1 or 2.

use nix::errno::Errno;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A group without members, removed when dropped.
#[derive(Debug)]
pub(crate) struct Group {
    dir: PathBuf,
    unified: bool,
}

/// Where the memory controller is mounted, and whether that is version 2.
fn mounted() -> Option<(PathBuf, bool)> {
    // See proc_pid_mountinfo(5): the mount point is the fifth field; type and options of the file system follow a lone dash.
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let at = PathBuf::from(before.split(' ').nth(4)?);
        let mut after = after.split(' ');
        match (after.next()?, after.nth(1)?) {
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => Some((at, false)),
            ("cgroup2", _) if lists(&at.join("cgroup.subtree_control"), "memory") => Some((at, true)),
            _ => None,
        }
    })
}

fn lists(file: &Path, word: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.split_whitespace().any(|w| w == word))
}

impl Group {
    pub(crate) fn make() -> Result<Self, String> {
        let (root, unified) = mounted().ok_or("no memory controller is mounted that hands groups to anyone")?;
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = root.join(format!("revocable-{}-{number}", std::process::id()));
        fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        Ok(Self { dir, unified })
    }

    /// One that another process has made.
    pub(crate) fn at(dir: PathBuf) -> std::mem::ManuallyDrop<Self> {
        let unified = dir.join("memory.max").exists();
        std::mem::ManuallyDrop::new(Self { dir, unified })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.dir.join(file), text)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir.join(file)).unwrap_or_default()
    }

    /// This process joins. What it allocates from now on is the group's; what it has is not.
    pub(crate) fn join(&self) {
        self.write("cgroup.procs", &std::process::id().to_string()).expect("a process may join");
    }

    /// In bytes.
    pub(crate) fn usage(&self) -> u64 {
        let file = if self.unified { "memory.current" } else { "memory.usage_in_bytes" };
        self.read(file).trim().parse().expect("a number")
    }

    /// Has the kernel take back what it can, as a lack of memory would.
    pub(crate) fn reclaim(&self) {
        // Version 2 says EAGAIN, version 1 nothing, if not all could be taken; how much was is for the caller to see.
        let _ = match self.unified {
            true => self.write("memory.reclaim", &self.usage().to_string()),
            false => self.write("memory.force_empty", "0"),
        };
    }

    /// From now on a page fault at the group's limit waits for memory instead of making the kernel kill a process, and nothing
    /// is swapped out before. Version 2 has no such thing.
    pub(crate) fn wait_at_the_limit(&self) -> bool {
        !self.unified && self.write("memory.oom_control", "1").is_ok() && self.write("memory.swappiness", "0").is_ok()
    }

    /// Does anybody wait for memory?
    pub(crate) fn is_at_the_limit(&self) -> bool {
        match fs::read_to_string(self.dir.join("memory.oom_control")) {
            Ok(text) => text.contains("under_oom 1"),
            // Nor is there memory for a member to read this by.
            Err(e) => e.raw_os_error() == Some(Errno::ENOMEM as i32),
        }
    }

    /// In bytes more than now.
    pub(crate) fn limit_to(&self, more: u64) {
        self.write("memory.limit_in_bytes", &(self.usage() + more).to_string()).expect("a limit above the usage");
    }

    pub(crate) fn no_limit(&self) {
        self.write("memory.limit_in_bytes", "-1").expect("no limit is a limit");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last member may be on its way out still.
        let since = Instant::now();
        while fs::remove_dir(&self.dir).is_err() && since.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
