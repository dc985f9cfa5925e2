//! Lets one thread touch files as another user.
//!
//! Linux keeps the ids that file access is judged by per thread. The raw system calls change this thread only, whereas
//! the C library's wrappers would change the whole program.

use crate::accounts::User;

/// This thread acts as a user until this is dropped.
#[derive(Debug)]
pub(super) struct ActingAs {
    switched: bool,
}

impl ActingAs {
    /// Switches the calling thread. Root needs no switch, and a daemon that is not root cannot make one.
    pub(super) fn user(user: &User) -> Self {
        let switched = user.uid != 0 && rustix::process::geteuid().is_root();
        if switched {
            set_groups(&user.groups);
            set_ids(user.uid, user.gid);
        }
        Self { switched }
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        if self.switched {
            set_ids(0, 0);
            set_groups(&[]);
        }
    }
}

fn set_groups(groups: &[u32]) {
    // SAFETY: pointer and length describe one slice; the raw call changes this thread only.
    unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
}

fn set_ids(uid: u32, gid: u32) {
    // SAFETY: plain numbers; the raw calls change this thread only. As root becomes another, group first.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    }
}
