//! Which groups may connect to the API's socket, by its mode and its access control list (acl(5)).

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use rustix::fs::{XattrFlags, setxattr};

/// The extended attribute that holds a file's access control list, and the version of its layout
/// (`include/uapi/linux/posix_acl_xattr.h`).
const ACL: &str = "system.posix_acl_access";
const ACL_VERSION: u32 = 2;
/// Who an entry is for.
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of an entry that is not for a named user or group.
const NO_ID: u32 = u32::MAX;
const READ_WRITE: u16 = 6;

/// Lets the owner and these groups connect. The first group is the file's own; a second one takes an access control list.
pub(super) fn open_to_groups(socket: &Path, groups: impl IntoIterator<Item = u32>) -> io::Result<()> {
    let mut groups = groups.into_iter();
    fs::set_permissions(socket, Permissions::from_mode(0o660))?;
    if let Some(own) = groups.next() {
        chown(socket, None, Some(own))?;
    }
    let others: Vec<u32> = groups.collect();
    if others.is_empty() {
        return Ok(());
    }
    setxattr(socket, ACL, &access_list(&others), XattrFlags::empty()).map_err(|error| {
        let remedy = "let another file system hold the socket (`--socket`), or name one group only";
        io::Error::other(format!("its file system takes no access control list for a second group ({error}); {remedy}"))
    })
}

/// Read and write for the owner, the file's group and these groups; nothing for other users.
fn access_list(groups: &[u32]) -> Vec<u8> {
    let named = groups.iter().map(|group| (GROUP, READ_WRITE, *group));
    let first = [(USER_OBJ, READ_WRITE, NO_ID), (GROUP_OBJ, READ_WRITE, NO_ID)];
    let last = [(MASK, READ_WRITE, NO_ID), (OTHER, 0, NO_ID)];
    let mut bytes = ACL_VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in first.into_iter().chain(named).chain(last) {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_as_the_kernel_has_it() {
        let list = access_list(&[4321]);
        assert_eq!(list.len(), 4 + 5 * 8);
        assert_eq!(list[..12], [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255]);
        assert_eq!(list[20..28], [8, 0, 6, 0, 0xe1, 0x10, 0, 0]);
        assert_eq!(list[36..], [0x20, 0, 0, 0, 255, 255, 255, 255]);
    }
}
