//! G1 for pages that a peer has pinned: they stay with the peer, and are not the region's any more.

use crate::{BEFORE, LEN, SECRET, call, each, untouched, withdraw, word};

/// A fixed buffer of an io_uring is pinned until it is unregistered.
#[test]
fn a_fixed_buffer_of_an_io_uring() {
    each(|region, peer, policy| {
        let registered = peer.ask("ring a 0x1000");
        require!(registered == "0", &format!("no io_uring: {registered}"), could: false);
        assert_eq!(peer.ask("from-ring"), format!("{:#x}", word(BEFORE)));
        withdraw(region);
        // What the page was when it was taken out; neither what the owner has made of it since, nor a way there.
        assert_eq!(peer.ask("from-ring"), format!("{:#x}", word(BEFORE)));
        assert_eq!(peer.ask("to-ring 0x7777777777777777"), "8");
        untouched(region);
        // Registered while disabled: there is nothing to pin, or a page of ones.
        assert_eq!(peer.ask("ring a 0x2000"), call(policy, 0));
        region.enable().expect("it restores");
        untouched(region);
        region.owner().fill(0, BEFORE, LEN).expect("it has memory");
        withdraw(region);
        assert_eq!(
            peer.ask("to-ring 0x7777777777777777"),
            if policy == revocable_mmio::OnDisabled::AllOnes { "8" } else { "EFAULT" }
        );
        untouched(region);
    });
}

#[test]
fn a_page_in_a_pipe_by_vmsplice() {
    each(|region, peer, policy| {
        assert_eq!(peer.ask("vmsplice a 0x1000"), "4096");
        withdraw(region);
        assert_eq!(peer.ask("from-pipe"), format!("{:#x}", word(BEFORE)));
        assert_eq!(peer.ask("vmsplice a 0x1000"), call(policy, 4096));
        region.enable().expect("it restores");
        assert_eq!(peer.ask("load a 0x1000"), format!("{:#x}", word(SECRET)));
    });
}

#[test]
fn a_direct_write_from_the_mapping() {
    each(|region, peer, policy| {
        let written = peer.ask("direct a 0x1000 0x2000");
        require!(written == "8192", &format!("no O_DIRECT in the directory for temporary files: {written}"), could: false);
        withdraw(region);
        assert_eq!(peer.ask("direct a 0x1000 0x2000"), call(policy, 0x2000));
        untouched(region);
    });
}
