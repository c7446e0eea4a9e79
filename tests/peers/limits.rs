//! What a user may have of pipes is limited (`pipe-user-pages-soft`, pipe(7)): after that they hold a page or two.

use crate::support::{self, child};
use crate::{BEFORE, POLICIES, shared, untouched, withdraw};
use nix::unistd::{Gid, Uid, setgid, setuid};

#[test]
fn a_user_without_pages_for_pipes_has_regions_all_the_same() {
    const LEN: usize = 2 << 20;
    support::start();
    require!(support::is_root(), "not root: no process of another user");
    child::alone(|| {
        // Root's pipes are not limited.
        setgid(Gid::from_raw(65534)).expect("root may");
        setuid(Uid::from_raw(65534)).expect("root may");
        for policy in POLICIES {
            // 64 MiB by default.
            let regions: Vec<_> = (0..40).map(|_| shared(LEN, policy)).collect();
            let last = regions.last().expect("40");
            last.owner().fill(0, BEFORE, LEN).expect("it has memory");
            last.disable().expect("it revokes");
            let mut content = vec![0; LEN];
            last.owner().read_slice(0, &mut content).expect("it has memory");
            assert!(content.iter().all(|byte| *byte == BEFORE), "{policy:?}: lost");
            last.enable().expect("it restores");
            withdraw(last);
            last.enable().expect("it restores");
            untouched(last);
        }
    })
    .well();
}
