//! The unmodified servers that tests run in containers. Each answers every request with its container's name.

use crate::{container::Spec, image::Image};

/// The test server on one address.
pub fn named(name: &str, listen: &str) -> Spec {
    named_with(name, &["--listen", listen])
}

/// The test server with arguments of its own.
pub fn named_with(name: &str, args: &[&str]) -> Spec {
    Spec::new(Image::Named, name).args(&["/named-server", "--name", name]).args(args)
}

/// The test server on one address, as user 1000.
pub fn named_as_user(name: &str, listen: &str) -> Spec {
    Spec::new(Image::NamedAsUser, name).args(&["/named-server", "--name", name, "--listen", listen])
}

/// busybox `httpd` on all IPv4 and IPv6 addresses.
pub fn busybox(name: &str, port: u16) -> Spec {
    shell(Image::Busybox, name, &format!("echo {name} >/www/index.html; exec busybox httpd -f -p {port} -h /www"))
}

/// Python's `http.server` on all IPv4 addresses.
pub fn python(name: &str, port: u16) -> Spec {
    let serve = format!("exec python3 -m http.server {port} --bind 0.0.0.0 --directory /www");
    shell(Image::Python, name, &format!("echo {name} >/www/index.html; {serve}"))
}

/// A Python program.
pub fn python_program(name: &str, program: &str) -> Spec {
    Spec::new(Image::Python, name).args(&["/usr/bin/python3", "-c", program])
}

/// nginx with two workers that have a listening socket each (`reuseport`), on all IPv4 addresses.
pub fn nginx(name: &str, port: u16) -> Spec {
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path /tmp/{kind};"));
    let config = format!(
        r#"user root; daemon off; worker_processes 2; pid /tmp/nginx.pid; error_log stderr;
        events {{ worker_connections 4096; }}
        http {{ access_log off; {}
            server {{ listen {port} reuseport; location / {{ return 200 "{name} $remote_addr:$remote_port\n"; }} }}
        }}"#,
        temporary.concat()
    );
    shell(Image::Nginx, name, &format!("echo '{config}' >/nginx.conf; exec nginx -c /nginx.conf"))
}

fn shell(image: Image, name: &str, script: &str) -> Spec {
    Spec::new(image, name).args(&["/bin/busybox", "sh", "-c", script])
}
