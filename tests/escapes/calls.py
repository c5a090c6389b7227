"""System calls that no program behind the walls may reach: name:x86-64:arm64 (headers of Linux 6.1 to
6.17)."""

FORBIDDEN = """
    shmget:29:194 shmat:30:196 shmctl:31:195 sendfile:40:71 socket:41:198 connect:42:203 accept:43:202
    sendto:44:206 recvfrom:45:207 sendmsg:46:211 recvmsg:47:212 shutdown:48:210 bind:49:200 listen:50:201
    getsockname:51:204 getpeername:52:205 socketpair:53:199 setsockopt:54:208 getsockopt:55:209
    execve:59:221 wait4:61:260 kill:62:129 semget:64:190 semop:65:193 semctl:66:191 shmdt:67:197
    msgget:68:186 msgsnd:69:189 msgrcv:70:188 msgctl:71:187 flock:73:32 link:86:- symlink:88:- chown:92:-
    fchown:93:55 lchown:94:- ptrace:101:117 syslog:103:116 setuid:105:146 setgid:106:144 setpgid:109:154
    setsid:112:157 setreuid:113:145 setregid:114:143 setgroups:116:159 setresuid:117:147 setresgid:119:149
    getpgid:121:155 setfsuid:122:151 setfsgid:123:152 getsid:124:156 capget:125:90 capset:126:91
    rt_sigqueueinfo:129:138 mknod:133:- personality:135:92 ustat:136:- statfs:137:43 fstatfs:138:44
    getpriority:140:141 setpriority:141:140 sched_setparam:142:118 sched_setscheduler:144:119
    sched_rr_get_interval:148:127 mlock:149:228 munlock:150:229 mlockall:151:230 pivot_root:155:41
    adjtimex:159:171 chroot:161:51 acct:163:89 settimeofday:164:170 mount:165:40 umount2:166:39
    swapon:167:224 swapoff:168:225 reboot:169:142 sethostname:170:161 setdomainname:171:162 iopl:172:-
    ioperm:173:- init_module:175:105 delete_module:176:106 quotactl:179:60 readahead:187:213 setxattr:188:5
    lsetxattr:189:6 fsetxattr:190:7 getxattr:191:8 lgetxattr:192:9 fgetxattr:193:10 listxattr:194:11
    llistxattr:195:12 flistxattr:196:13 removexattr:197:14 lremovexattr:198:15 fremovexattr:199:16
    tkill:200:130 sched_setaffinity:203:122 io_setup:206:0 io_destroy:207:1 io_getevents:208:4
    io_submit:209:2 io_cancel:210:3 remap_file_pages:216:234 semtimedop:220:192 clock_settime:227:112
    tgkill:234:131 mbind:237:235 set_mempolicy:238:237 get_mempolicy:239:236 mq_open:240:180
    mq_unlink:241:181 mq_timedsend:242:182 mq_timedreceive:243:183 mq_notify:244:184 mq_getsetattr:245:185
    kexec_load:246:104 waitid:247:95 add_key:248:217 request_key:249:218 keyctl:250:219 ioprio_set:251:30
    ioprio_get:252:31 inotify_init:253:- inotify_add_watch:254:27 inotify_rm_watch:255:28
    migrate_pages:256:238 mknodat:259:33 fchownat:260:54 linkat:265:37 symlinkat:266:36 unshare:272:97
    get_robust_list:274:100 splice:275:76 tee:276:77 sync_file_range:277:84 vmsplice:278:75
    move_pages:279:239 signalfd:282:- fallocate:285:47 accept4:288:242 signalfd4:289:74 inotify_init1:294:26
    rt_tgsigqueueinfo:297:240 perf_event_open:298:241 recvmmsg:299:243 fanotify_init:300:262
    fanotify_mark:301:263 name_to_handle_at:303:264 open_by_handle_at:304:265 clock_adjtime:305:266
    syncfs:306:267 sendmmsg:307:269 setns:308:268 process_vm_readv:310:270 process_vm_writev:311:271
    kcmp:312:272 finit_module:313:273 sched_setattr:314:274 sched_getattr:315:275 seccomp:317:277
    memfd_create:319:279 kexec_file_load:320:294 bpf:321:280 execveat:322:281 userfaultfd:323:282
    mlock2:325:284 copy_file_range:326:285 pkey_mprotect:329:288 pkey_alloc:330:289 pkey_free:331:290
    io_pgetevents:333:292 pidfd_send_signal:424:424 io_uring_setup:425:425 io_uring_enter:426:426
    io_uring_register:427:427 open_tree:428:428 move_mount:429:429 fsopen:430:430 fsconfig:431:431
    fsmount:432:432 fspick:433:433 pidfd_open:434:434 clone3:435:435 openat2:437:437 pidfd_getfd:438:438
    process_madvise:440:440 epoll_pwait2:441:441 mount_setattr:442:442 quotactl_fd:443:443
    landlock_create_ruleset:444:444 landlock_add_rule:445:445 landlock_restrict_self:446:446
    memfd_secret:447:- process_mrelease:448:448 futex_waitv:449:449 set_mempolicy_home_node:450:450
    cachestat:451:451 map_shadow_stack:453:453 futex_wake:454:454 futex_wait:455:455 futex_requeue:456:456
    statmount:457:457 listmount:458:458 lsm_get_self_attr:459:459 lsm_set_self_attr:460:460
    lsm_list_modules:461:461 mseal:462:462 setxattrat:463:463 open_tree_attr:467:467
"""
