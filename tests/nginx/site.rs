//! Promise: the shipped includes work in any site. What a location inherits bends nothing, what guards the
//! site guards the sidecar, and the paths of the old `location /webws` go on to be served.

use super::{PATH, unchanged};
use crate::support::SOON;
use crate::support::client::{Client, Socket};
use crate::support::http::{get, handshake, request};
use crate::support::nginx::{Nginx, Site};
use crate::support::webws::Webws;

/// Whatever a location can inherit and a WebSocket would suffer from, at the levels where sites have it:
/// all of the proxy module that concerns plain HTTP, then the core and the filters.
pub(crate) const HOSTILE: Site<'static> = Site {
    main: "",
    user: "",
    http: r#"
    proxy_cache_path {at}/cache keys_zone=site:1m;
    proxy_bind 127.0.0.9;
    proxy_buffer_size 128k; proxy_buffers 4 256k; proxy_busy_buffers_size 256k;
    proxy_buffering on; proxy_request_buffering off;
    proxy_cache site; proxy_cache_key x; proxy_cache_valid any 1h; proxy_cache_methods GET HEAD POST;
    proxy_cache_convert_head off; proxy_cache_lock on; proxy_cache_lock_age 1ms; proxy_cache_lock_timeout 1ms;
    proxy_cache_background_update on; proxy_cache_use_stale error updating http_503; proxy_cache_min_uses 1;
    proxy_cache_max_range_offset 1; proxy_cache_revalidate on; proxy_no_cache 0; proxy_cache_bypass 0;
    proxy_connect_timeout 1ms; proxy_read_timeout 1ms; proxy_send_timeout 1ms;
    proxy_cookie_domain ~. x; proxy_cookie_path ~. y; proxy_cookie_flags ~. secure;
    proxy_force_ranges on;
    proxy_headers_hash_max_size 1; proxy_headers_hash_bucket_size 1;
    proxy_hide_header Retry-After; proxy_hide_header Sec-WebSocket-Accept; proxy_hide_header Content-Type;
    proxy_http_version 1.0;
    proxy_ignore_client_abort on;
    proxy_ignore_headers X-Accel-Redirect Vary;
    proxy_intercept_errors on;
    proxy_limit_rate 1;
    proxy_max_temp_file_size 1024m; proxy_temp_file_write_size 1m;
    proxy_method POST;
    proxy_next_upstream error timeout http_502 http_503 non_idempotent;
    proxy_next_upstream_tries 1; proxy_next_upstream_timeout 1ms;
    proxy_pass_header Server; proxy_pass_header Date;
    proxy_pass_request_body on; proxy_pass_request_headers on;
    proxy_redirect ~. /x;
    proxy_set_body "hello=$request_body";
    proxy_set_header Host evil; proxy_set_header Connection close; proxy_set_header Upgrade "";
    proxy_socket_keepalive on;
    proxy_ssl_verify on; proxy_ssl_name x; proxy_ssl_server_name on; proxy_ssl_session_reuse off;
    error_page 400 403 404 405 408 426 429 431 500 502 503 504 =200 /oops;
    recursive_error_pages on;
    limit_rate 1; limit_rate_after 1;
    gzip on; gzip_types *; gzip_min_length 0; gzip_proxied any; gzip_vary on; gzip_http_version 1.0;
    gunzip on; gzip_static always;
    ssi on; ssi_types *;
    charset koi8-r; charset_types *; override_charset on;
    expires max; add_header X-Site 1 always; userid on; userid_name site;
    client_max_body_size 1; client_body_timeout 1ms; client_body_in_file_only on;
    client_body_in_single_buffer on; client_body_buffer_size 1;
    keepalive_requests 1; keepalive_timeout 0;
    send_timeout 1ms; lingering_close off; lingering_time 1ms; lingering_timeout 1ms;
    reset_timedout_connection on;
    tcp_nodelay off; tcp_nopush on; sendfile on; aio threads; directio 1;
    postpone_output 100000; output_buffers 1 1; chunked_transfer_encoding off;
    default_type text/html; types {}
    etag off; if_modified_since before; max_ranges 0;
    mirror /mirror;
    add_before_body /oops; add_after_body /oops;
    dav_methods PUT;
"#,
    server: r"
    proxy_store on; proxy_store_access user:rw;
    try_files $uri =404;
    location = /mirror { return 200; }
    location = /oops   { return 200 oops; }
    location ~ \.php$  { return 299 php; }
    location /         { return 200 home; }
",
};

/// The largest and the smallest that a site may have for buffers that nginx compares with each other.
const BUFFERS: [&str; 4] = [
    "proxy_buffer_size 128k; proxy_buffers 4 256k; proxy_busy_buffers_size 256k;",
    "proxy_buffer_size 1k; proxy_buffers 8 1k; proxy_busy_buffers_size 2k; proxy_temp_file_write_size 2k;",
    "proxy_busy_buffers_size 8k; proxy_max_temp_file_size 8k;",
    "proxy_headers_hash_bucket_size 32;",
];

#[tokio::test]
async fn no_buffers_of_a_site_keep_nginx_from_starting() {
    let webws = Webws::on("memory").await;
    for http in BUFFERS {
        let nginx = Nginx::start_in(Site { http, ..Site::default() }, &webws.socket(), unchanged).await;
        Client::connect(&nginx.target(), PATH).await.close().await;
    }
}

#[tokio::test]
async fn hostile_settings_of_a_site_bend_neither_messages_nor_refusals() {
    let mut webws = Webws::on("memory").await;
    let nginx = Nginx::start_in(HOSTILE, &webws.socket(), unchanged).await;
    // One that reads nothing at first, and more for it than the buffers in between hold.
    let mut slow = Client::connect(&nginx.target(), PATH).await;
    let mut one = Client::connect(&nginx.target(), PATH).await;
    assert_eq!((one.head().header("Set-Cookie"), one.head().header("X-Site")), (None, None), "{:?}", one.head());
    let text = "x".repeat(65_000);
    for _ in 0..24 {
        one.send_text(&text).await;
        one.expect_text(&format!("{text}zhang")).await;
    }
    for _ in 0..24 {
        slow.expect_text(&format!("{text}zhang")).await;
    }
    one.close().await;
    slow.close().await;

    let refused = handshake(&nginx.target(), "/webws").await;
    let direct = handshake(&webws.target(), "/webws").await;
    assert_eq!((refused.head.status, &refused.body), (400, &direct.body), "{refused:?}");
    let socket = Socket::connect(&nginx.target()).await.unwrap();
    let post = b"POST /webws HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx";
    let refused = request(&socket, post).await;
    assert_eq!((refused.head.status, refused.head.header("Allow")), (405, Some("GET")), "{refused:?}");
    assert_eq!(refused.body, "a WebSocket handshake is a GET\n");
    webws.term();
    webws.wait_exit(SOON).await;
    let away = handshake(&nginx.target(), PATH).await;
    assert_eq!((away.head.status, away.all("Retry-After")), (502, vec!["5"]), "{away:?}");
}

#[tokio::test]
async fn what_guards_a_site_guards_the_sidecar() {
    let webws = Webws::on("memory").await;
    let guards = [
        ("", "auth_basic site; auth_basic_user_file {at}/nginx.conf;", 401),
        ("", "deny all;", 403),
        ("", "auth_request /_auth; location = /_auth { return 401; }", 401),
        ("limit_req_zone $server_port zone=r:1m rate=1r/m;", "limit_req zone=r; limit_req_status 429;", 429),
        ("limit_conn_zone $server_port zone=c:1m;", "limit_conn c 1; limit_conn_status 429;", 429),
    ];
    for (http, server, status) in guards {
        let nginx = Nginx::start_in(Site { http, server, ..Site::default() }, &webws.socket(), unchanged).await;
        // Limits let the first one in.
        let first = if status == 429 { Some(Client::connect(&nginx.target(), PATH).await) } else { None };
        for path in [PATH, "/webws/?channel=1", "/webws/foo?channel=1"] {
            assert_eq!(handshake(&nginx.target(), path).await.head.status, status, "{server} {path}");
        }
        drop(first);
    }
}

#[tokio::test]
async fn the_paths_of_the_old_prefix_location_are_served_as_the_endpoint() {
    let webws = Webws::on("memory").await;
    let site = Site { server: "location / { return 200 home; }", ..Site::default() };
    let nginx = Nginx::start_in(site, &webws.socket(), unchanged).await;
    let mut one = Client::connect(&nginx.target(), PATH).await;
    for path in ["/webws/", "/webws/foo", "/webws/foo/bar", "//webws", "/x/../webws", "/%77ebws"] {
        let mut client = Client::connect(&nginx.target(), &format!("{path}?channel=%22zhang%22")).await;
        client.send_text(path).await;
        client.expect_text(&format!("{path}zhang")).await;
        one.expect_text(&format!("{path}zhang")).await;
        client.close().await;
    }
    // Another path that begins like it is the site's.
    assert_eq!(get(&nginx.target(), "/webws-demo").await.body, "home");
}

/// The shipped location, and beside it the copy that the README's sed makes.
fn with_news(name: &str, text: String) -> String {
    if name != "webws-location.conf" {
        return text;
    }
    let command = crate::readme::block("sh", "/etc/nginx/webws-news.conf");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("webws-location.conf"), &text).unwrap();
    let command = command.replace("/etc/nginx/", "");
    crate::readme::run(dir.path(), "bash", &["-ec", &command], &[]);
    let copy = std::fs::read_to_string(dir.path().join("webws-news.conf")).unwrap();
    assert!(text.matches("the path, ").count() == 4 && copy.matches("/news").count() == 4, "{copy}");
    format!("{text}\n{copy}")
}

#[tokio::test]
async fn an_endpoint_that_takes_its_channel_from_the_path_is_served_by_the_recipe_for_it() {
    let news = "path = \"/news\"\nchannel = \"path\"\nprefix = \"news:\"\nwire = \"plain\"";
    let webws = Webws::builder().broker("memory").endpoint_toml("").endpoint_toml(news).start().await;
    let site = Site { server: "location / { return 200 home; }", ..Site::default() };
    let nginx = Nginx::start_in(site, &webws.socket(), with_news).await;
    for (name, same) in [("sport", "%73port"), ("zh%20ang", "zh%20ang"), ("100%25", "100%25"), ("a%3Fb%23", "a%3fb%23")]
    {
        let mut one = Client::connect(&nginx.target(), &format!("/news/{name}")).await;
        let mut direct = Client::connect(&webws.target(), &format!("/news/{same}")).await;
        one.send_text("news").await;
        one.expect_text("news").await;
        direct.expect_text("news").await;
    }
    assert_eq!(handshake(&nginx.target(), "/news/").await.head.status, 404);
    for path in [PATH, "/webws/news/?channel=%22zhang%22"] {
        Client::connect(&nginx.target(), path).await.close().await;
    }
}

/// The shipped location, and beside it a copy for `/webws/admin` that lets nobody in, before or behind it.
fn with_guarded_admin(is_first: bool) -> impl Fn(&str, String) -> String {
    move |name, text| {
        if name != "webws-location.conf" {
            return text;
        }
        let admin = text
            .replace("location = /webws {", "location = /webws/admin {\ndeny all;")
            .replace("@away:/webws", "@away:/webws/admin")
            .replace("webws_sidecar/webws;", "webws_sidecar/webws/admin;");
        if is_first { admin + "\n" + &text } else { text + "\n" + &admin }
    }
}

#[tokio::test]
async fn of_two_endpoints_one_below_the_other_each_keeps_its_own_guards() {
    let webws = Webws::builder()
        .broker("memory")
        .endpoint_toml("path = \"/webws\"")
        .endpoint_toml("path = \"/webws/admin\"")
        .start()
        .await;
    for is_first in [true, false] {
        let nginx = Nginx::start_in(Site::default(), &webws.socket(), with_guarded_admin(is_first)).await;
        for (path, status) in [
            ("/webws", 101),
            ("/webws/x", 101),
            ("/webws/administrator", 101),
            ("/webws/admin", 403),
            ("/webws/admin/", 403),
            ("/webws/admin/x", 403),
            ("/x/../webws//admin", 403),
        ] {
            let answer = handshake(&nginx.target(), &format!("{path}?channel=1")).await;
            assert_eq!(answer.head.status, status, "{path}, guarded first: {is_first}: {answer:?}");
        }
    }
    // Guarded by hand: no rule is passed by, because the sidecar refuses the shipped location's request.
    let server = "location ^~ /webws/admin { deny all; proxy_pass http://webws_sidecar; }
                  location ^~ /webws/docs { return 200 docs; }
                  location = /secret { internal; return 200 secret; }";
    let nginx = Nginx::start_in(Site { server, ..Site::default() }, &webws.socket(), unchanged).await;
    let answer = handshake(&nginx.target(), "/webws/admin/x?channel=1").await;
    assert_eq!((answer.head.status, answer.body.contains("different endpoint")), (400, true), "{answer:?}");
    // What is no WebSocket handshake stays the site's, and no header leads to an internal location.
    assert_eq!(get(&nginx.target(), "/webws/docs").await.body, "docs");
    let socket = Socket::connect(&nginx.target()).await.unwrap();
    let forged = b"GET /webws/x HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: /secret http://webws_sidecar/secret /secret/ websocket\r\n\r\n";
    assert_ne!(request(&socket, forged).await.body, "secret");
}
