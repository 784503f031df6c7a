//! Accounts of a test's own host: users and groups that only its processes see.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
};

use anyhow::{Context as _, Result};

use crate::{host::Host, process::run};

/// The first number of the groups. No machine has them.
const GROUPS_FROM: u32 = 64_800;

/// A user of a host.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its name, which its own group has too.
    pub name: &'static str,
    /// Its number, and that of its own group.
    pub id: u32,
    /// Groups that it is a member of.
    pub groups: &'static [&'static str],
}

impl Account {
    /// Its home directory.
    pub fn home(&self, host: &Host) -> PathBuf {
        host.dir().join("homes").join(self.name)
    }
}

/// Adds users to a host, and makes their home directories. Groups of the machine with the same names are replaced.
pub fn add(host: &Host, accounts: &[Account]) -> Result<()> {
    let (mut users, mut groups) = (fs::read_to_string("/etc/passwd")?, BTreeMap::new());
    let mut named = BTreeMap::<&str, Vec<&str>>::new();
    for account in accounts {
        let (Account { name, id, groups: memberships }, home) = (account, account.home(host));
        users = without(&users, name) + &format!("{name}:x:{id}:{id}::{}:/bin/sh\n", home.display());
        groups.insert(*name, format!("{name}:x:{id}:\n"));
        memberships.iter().for_each(|group| named.entry(group).or_default().push(name));
        fs::create_dir_all(&home)?;
        chown(&home, Some(*id), Some(*id)).with_context(|| format!("{} becomes {name}'s", home.display()))?;
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
    }
    for (number, (group, members)) in (GROUPS_FROM..).zip(&named) {
        groups.insert(group, format!("{group}:x:{number}:{}\n", members.join(",")));
    }
    let mut all = fs::read_to_string("/etc/group")?;
    for (name, line) in groups {
        all = without(&all, name) + &line;
    }
    for (name, text) in [("passwd", users), ("group", all)] {
        let file = host.dir().join(name);
        fs::write(&file, text)?;
        run(host.command("mount")?.arg("--bind").arg(file).arg(format!("/etc/{name}")))?;
    }
    Ok(())
}

/// A file of users or groups without those of this name.
fn without(file: &str, name: &str) -> String {
    let others = file.lines().filter(|line| line.split(':').next() != Some(name));
    others.map(|line| format!("{line}\n")).collect()
}
