//! Which processes may hold a window's file lock: those that have the file open for writing, as far as /proc shows them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The ids of other processes that have the file open for writing. Empty without /proc, and without the right to look
/// (ptrace(2), `PTRACE_MODE_READ`).
pub(super) fn that_may_write(file: &fs::Metadata) -> Vec<i32> {
    let me = i32::try_from(std::process::id()).ok();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| Some(*pid) != me);
    others.filter(|pid| may_write(*pid, file).unwrap_or(false)).collect()
}

fn may_write(pid: i32, file: &fs::Metadata) -> Option<bool> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let mut its = descriptors
        .filter(|fd| fs::metadata(fd.path()).is_ok_and(|other| (other.dev(), other.ino()) == (file.dev(), file.ino())));
    Some(its.any(|fd| is_for_writing(&Path::new("/proc").join(format!("{pid}/fdinfo")).join(fd.file_name()))))
}

/// By the line `flags`, octal, of proc_pid_fdinfo(5).
fn is_for_writing(info: &Path) -> bool {
    let info = fs::read_to_string(info).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & nix::libc::O_ACCMODE != nix::libc::O_RDONLY)
}
