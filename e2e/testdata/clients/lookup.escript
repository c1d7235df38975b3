#!/usr/bin/env escript
%% -*- erlang -*-
%%! +S 1 +sbwt none
%% Erlang's own resolver (inet_res). Arguments are triples: udp or tcp, a type, a
%% name (an address for ptr). For each it prints a line: the records, with tabs
%% between, or NXDOMAIN or NODATA.
main([Via, Type, Name | Rest]) ->
    T = list_to_atom(Type),
    Options = [{usevc, Via =:= "tcp"}, {timeout, 3000}],
    io:format("~s~n", [outcome(inet_res:resolve(question(T, Name), in, T, Options, 6000))]),
    main(Rest);
main([]) ->
    ok.

question(ptr, Address) ->
    {ok, A} = inet:parse_address(Address),
    A;
question(_, Name) ->
    Name.

outcome({ok, Message}) ->
    case inet_dns:msg(Message, anlist) of
        [] -> "NODATA";
        Records -> lists:join("\t", [text(inet_dns:rr(R, type), inet_dns:rr(R, data)) || R <- Records])
    end;
outcome({error, {nxdomain, _}}) -> "NXDOMAIN";
outcome({error, nxdomain}) -> "NXDOMAIN";
outcome({error, Why}) -> io_lib:format("error: ~w", [Why]).

text(aaaa, A) -> inet:ntoa(A);
text(a, A) -> inet:ntoa(A);
text(txt, Strings) -> lists:append(Strings);
text(srv, {Priority, Weight, Port, Target}) -> io_lib:format("~w ~w ~w ~s", [Priority, Weight, Port, Target]);
text(ptr, Name) -> Name.
