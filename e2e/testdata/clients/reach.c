/* A C program that connects by name, as most do: getaddrinfo(3), then the
 * addresses in the order given. For each name it prints a line: the name, the
 * addresses that it was given, what was said by whoever answered; with tabs
 * between. After "-n" it connects to nobody; after "-x" it looks names of addresses
 * up. The tests build it static, with musl's C library. */
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static int say(struct addrinfo *list, const char *name, char *page, size_t size) {
	struct timeval patience = {5, 0};
	char request[512];
	for (struct addrinfo *a = list; a; a = a->ai_next) {
		int fd = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
		if (fd < 0)
			continue;
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
		if (connect(fd, a->ai_addr, a->ai_addrlen)) {
			close(fd);
			continue;
		}
		int n = snprintf(request, sizeof request, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", name);
		size_t have = 0;
		ssize_t got = -1;
		if (write(fd, request, n) == n)
			while (have + 1 < size && (got = read(fd, page + have, size - 1 - have)) > 0)
				have += got;
		page[have] = 0;
		close(fd);
		return got;
	}
	return -1;
}

static void name_of(const char *address) {
	struct sockaddr_in6 at = {.sin6_family = AF_INET6};
	char name[NI_MAXHOST] = "";
	int err = EAI_NONAME;
	if (inet_pton(AF_INET6, address, &at.sin6_addr) == 1)
		err = getnameinfo((struct sockaddr *)&at, sizeof at, name, sizeof name, NULL, 0, NI_NAMEREQD);
	printf("%s\t%s\t%s\n", address, name, err ? gai_strerror(err) : "");
}

int main(int argc, char **argv) {
	static char page[1 << 16];
	int first = argc > 1 && argv[1][0] == '-' ? 2 : 1;
	for (int i = first; i < argc; i++) {
		if (first == 2 && argv[1][1] == 'x') {
			name_of(argv[i]);
			continue;
		}
		struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
		int err = getaddrinfo(argv[i], "80", &hints, &list);
		printf("%s\t", argv[i]);
		if (err) {
			printf("\terror: %s\n", gai_strerror(err));
			continue;
		}
		for (struct addrinfo *a = list; a; a = a->ai_next) {
			char text[INET6_ADDRSTRLEN] = "";
			const void *raw = a->ai_family == AF_INET6 ? (void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr
								   : (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr;
			inet_ntop(a->ai_family, raw, text, sizeof text);
			printf("%s%s", a == list ? "" : ",", text);
		}
		char *body = NULL;
		if (first == 2)
			body = "\r\n\r\n";
		else if (!say(list, argv[i], page, sizeof page) && (body = strstr(page, "\r\n\r\n")))
			body[4 + strcspn(body + 4, "\n")] = 0;
		printf("\t%s\n", body ? body + 4 : "error: nobody answered");
		freeaddrinfo(list);
	}
	return 0;
}
