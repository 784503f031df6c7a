//! The commands of a package manager, in a machine that has the packages in `/packages`.

/// A package manager's commands.
pub struct Packager {
    /// How a package's file name ends.
    pub extension: &'static str,
    /// Makes what the package finds on systems of its own family.
    pub prepare: &'static str,
    /// Installs the first version.
    pub install: &'static str,
    /// What is done under load, each with a name: first the upgrade to the next version.
    pub steps: &'static [(&'static str, &'static str)],
    /// Succeeds if every file is as packed.
    pub verify: &'static str,
    /// Removes the package; the settings stay if there is another command for them.
    pub remove: &'static str,
    /// Removes the settings too.
    pub purge: Option<&'static str>,
}

/// Debian's own.
pub const DEB: Packager = Packager {
    extension: "deb",
    prepare: "true",
    install: "apt-get install -y -qq /packages/first.deb",
    steps: &[
        ("upgrade", "apt-get install -y -qq /packages/next.deb"),
        ("installation of the same version", "apt-get install -y -qq --reinstall /packages/next.deb"),
        ("second run of the script", "/var/lib/dpkg/info/pod-steer.postinst configure 0.1.0-2"),
        RESTART,
    ],
    verify: "test -z \"$(dpkg --verify pod-steer)\"",
    remove: "apt-get remove -y -qq pod-steer",
    purge: Some("apt-get purge -y -qq pod-steer"),
};

/// RPM, with a database of its own. Debian has what the package requires, and RPM does not know that.
pub const RPM: Packager = Packager {
    extension: "rpm",
    // Directories of Fedora's package `filesystem`.
    prepare: "mkdir -p /usr/share/licenses /usr/share/zsh/site-functions",
    install: "rpm --dbpath /packages/db --install --nodeps /packages/first.rpm",
    steps: &[
        ("upgrade", "rpm --dbpath /packages/db --upgrade --nodeps /packages/next.rpm"),
        (
            "installation of the same version",
            "rpm --dbpath /packages/db --upgrade --replacepkgs --nodeps /packages/next.rpm",
        ),
        RESTART,
    ],
    verify: "test -z \"$(rpm --dbpath /packages/db --verify --nodeps pod-steer)\"",
    remove: "rpm --dbpath /packages/db --erase pod-steer",
    purge: None,
};

const RESTART: (&str, &str) = ("restart", "systemctl restart pod-steer");
